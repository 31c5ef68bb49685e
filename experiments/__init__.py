"""One module per question: what is asked, how to run it, its cost, what to expect."""

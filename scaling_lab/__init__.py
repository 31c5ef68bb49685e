"""How should this transformer be laid out on that machine, and what will it cost?"""

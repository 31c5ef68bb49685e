"""The mechanisms behind the verbs. A layout chooses among them; a model never does.

`verbs.Verbs` is what a model family may say. Every other file here is one way of
doing one verb on the devices of a mesh, as a plain function of arrays; `shard_map`
lives in this room and nowhere else.
"""

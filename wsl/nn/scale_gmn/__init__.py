"""Scale- and sign-equivariant message passing on neural graphs.

kinds      what the group does to a node, and which graphs it acts on cleanly
graph      nodes and edges sorted by kind: dense blocks of one architecture, or an edge list of many
functions  invariant and equivariant functions of one vector
layer      messages, node and edge updates
front      from weights to the first states
reach      which states the readout can see
readout    from the last states to one vector per network;  field  to a field over the parameters
"""

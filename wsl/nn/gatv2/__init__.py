"""GATv2 attention with closed-form gradients: the pieces of :mod:`wsl.nn.gatv2_function`.

    scores       LeakyReLU (GATv2) and Softplus (GAT+) inside the score, with their derivatives
    graph        a graph sorted once by destination
    topology     the edges that a layer uses: self loops, direction; remembered per graph
    maps         the linear maps around the attention, and their gradients
    problem      what every execution form is given, and what it returns
    edge_list    chunks of edges that stay in cache
    csr          whole-graph sparse products, every output row owned by one reduction
    dense_blocks all-to-all blocks between neuron groups: batched GEMMs, no index tensors
    probe        gradient-flow readings, computed only where a probe is attached
    balance      initialisation of a stack of layers for which no parameter starts frozen

Notation everywhere: N nodes (sources j, destinations i), E edges e = (j → i), H heads, C channels per head, D edge
features; ``xl = x W_l^T + b_l`` is the source map (key and value), ``xr = x W_r^T + b_r`` the target map (query),
``v_e = W_e f_e`` the edge term.
"""

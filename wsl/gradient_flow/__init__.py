"""Where gradients go, and where they die: diagnostics of one training step as pure functions, and what they mean.

    D1   gradient norm and root mean square               any parameter     steps.gradient_rms
    D2   gradient relative to the parameter               any parameter     steps.relative_gradient
    D3   step taken relative to the parameter             any parameter     steps.relative_update
    D4   geometric change of the gradient per layer       any stack         steps.depth_factor
    D5   attention entropy                                GATv2             attention.attention_readings
    D6   share of saturated softmaxes                     GATv2             〃
    D7   score path against message path                  GATv2             〃
    D8   shares of dead queries, of nodes without a choice                  〃
    D9   gradient of the target map against the source's     GATv2          〃
    D10  contrast of the neighbours' values               GATv2             〃
    D11  residual of the conservation law                 pairs of GATv2    conservation.residual
    D12  balance between neighbouring layers              pairs of GATv2    conservation.balance_level
    D13  gain of a layer's transposed Jacobian            any layer         steps.jacobian_gain
    D14  cosine of successive step gradients              any parameter     steps.direction
    D15  sum of the logits' gradients, which is 0         GATv2             attention.attention_readings

A reading is a number for a *quantity* of a *place* (layer or parameter) at a step; :mod:`wsl.gradient_flow.verdicts`
judges readings, and passes sentence only when three of the last five agree.
"""

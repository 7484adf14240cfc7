"""Losses at many changed weights in one pass of the model as it is, as changes of what every operation gives.

Changing one weight of a layer changes one column of what the layer puts out. So a pass carries, for every tensor that a
weight reaches, the value at the model's own weights, once, and beside it how it changes for each of n changed weights. Rules
for the operations of a model (those that torch breaks everything into) give the change of the output from that of the input
without a difference of two nearly equal numbers: tanh(a + d) - tanh(a) = tanh(d) (1 - tanh(a)²) / (1 + tanh(a) tanh(d)).
Nothing cancels, so a step may be as short as one likes. An operation without a rule is evaluated at both values and
subtracted, and said.
"""

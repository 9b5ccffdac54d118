"""How a guided evaluation is made of passes of the network (`passes`).

Classifier-free guidance takes two passes, one with the prompt and one with the negative prompt. Families differ in
whether both go into one call, in how their outputs are combined, and in the steps that are guided.
"""

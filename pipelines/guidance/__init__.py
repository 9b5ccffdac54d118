"""How a guided evaluation is made of passes of the network.

Classifier-free guidance takes two passes, one with the prompt and one with the negative prompt. `paired` makes both in
one call of twice the rows; `partly_guided` makes the second one only for rows at guided steps. Families whose network
takes one pass, or two calls, combine the outputs themselves.
"""

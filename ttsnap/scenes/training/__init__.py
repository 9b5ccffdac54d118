"""How the embedded world's models were made: data, recipes and training loops, each a command.

docs/embedded_model.md tells what came out.
"""

"""The learned reward: what the exact checker says, learned by a network."""

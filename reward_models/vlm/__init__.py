"""Rewards that are a vision-language model: with a head on its hidden states, or scores written in
words.

headed.py is a model with a head: HPSv3, EditReward and VideoAlign. spoken.py is a model that
answers in words: UnifiedReward and EditScore. prompts/ has their questions as published (model.py
has the sources). No pickle is read.
"""

"""The small Hunyuan-style MoE that ships with the project: its weights, and all it takes to train and measure it again.

checkpoint/ is what the server loads when no model is named; path.py finds it. Nothing in the serving path imports the rest.
"""

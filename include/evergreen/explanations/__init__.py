"""What a model's predictions depend on: the importance of its inputs, and the explanation of one prediction.

Nothing here decides anything: a verdict is recorded before the importance of inputs is measured.
"""

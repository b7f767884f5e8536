"""The options of each verb, apart from what it does: nothing here imports Beam, numpy or torch.

So `dpgmm VERB --help`, what a shell completes and a mistyped option are answered at once.
A verb's module of the same name takes its `parser` from here.
"""

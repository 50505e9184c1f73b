"""Who reads what, and when: integer arithmetic over the shards' sample counts.

Pure functions of their arguments: no clock, no environment, no global random state, no torch.
"""

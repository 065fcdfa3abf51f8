"""What is asked: studies, arms, profiles and plans, the registry's files, and whether settings fit. Nothing runs here.

`from iar_study.study import Arm, Plan, Profile, Study` is all that a file of `experiments/` needs, beside the claims.
"""

from iar_study.study.study import Arm, Plan, Profile, Study

__all__ = ["Arm", "Plan", "Profile", "Study"]

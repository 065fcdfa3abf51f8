"""Studies: the registry, the stages that trials share, the runner, tracking, results and statistics."""

from iar_study.study.study import Arm, Plan, Profile, Study

__all__ = ["Arm", "Plan", "Profile", "Study"]

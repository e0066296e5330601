"""wamkit's models as LeRobot policies: ``lerobot-train --policy.type=lawam``, ``lerobot-eval --policy.path=...``.

LeRobot finds them through the distribution ``lerobot_policy_wamkit``, which imports `configuration_wamkit`; from there
it goes by names: ``LawamConfig`` in ``configuration_wamkit``, ``LawamPolicy`` in ``modeling_wamkit``,
``make_lawam_pre_post_processors`` in ``processor_wamkit``. All three are made from the model registry.
"""

SUPPORTED_VERSIONS = ("0.6.1",)
"""Releases of LeRobot that the tests run with; the plug-in goes by LeRobot's internals, so others may break it."""

LEROBOTS_OWN = ("lingbot_va",)
"""Models whose name is a policy type of LeRobot's own: there the type means LeRobot's port, and ours has none."""

PLUG_IN = "lerobot_policy_wamkit"
"""The distribution whose name LeRobot looks for."""

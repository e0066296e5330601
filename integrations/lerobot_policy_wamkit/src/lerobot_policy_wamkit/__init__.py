"""Imported by LeRobot when its commands start; registers wamkit's models as policy types and does nothing else."""

from wamkit.integrations.lerobot import configuration_wamkit

__all__ = ["configuration_wamkit"]

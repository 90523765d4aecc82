"""Vital layers: the few layers of a transformer without which its pictures fall apart.

:mod:`attnctl.vital_layers.bypass_search` finds them: it makes each picture again without one layer,
and compares.
"""

from attnctl.vital_layers.layers import VitalLayers, choose_layers, known_layers

__all__ = ["VitalLayers", "choose_layers", "known_layers"]

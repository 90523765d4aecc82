"""Optical flow of a clip, and the trajectories and lanes that attention follows.

Convention everywhere: a flow is ``(F - 1, 2, H, W)`` float32 in pixels; channel 0 is dx (columns,
to the right), channel 1 is dy (rows, down). ``forward[t]`` takes a pixel of frame t to frame
t + 1, ``backward[t]`` a pixel of frame t + 1 to frame t.

From a clip to attention along its motion::

    flow = estimate_flow(frames)                       # ClipFlow; frames (F, 3, H, W) in [0, 1]
    lanes = build_lanes(flow, (height, width), seed=0)     # Lanes of one grid of tokens
    out = lane_attention(query, key, value, lanes)     # (B, H, F * n, D), frames slowest

**Lanes.** A trajectory is a maximal chain of tokens linked by the flow. Trajectories have different
lengths; lanes do not. Between two frames the partial one-to-one links are completed to a
permutation by pairing what is left over, so that ``n`` lanes of exactly F tokens hold every token
once. ``segment[lane, t]`` grows at each such artificial link: tokens of one lane with equal segment
are one trajectory. :func:`attnctl.ops.lanes.lane_attention` gathers ``(B * H, n, F, D)``, attends
under the mask of equal segments and scatters back; nothing is padded, and memory is that of the
tokens.
"""

from attnctl.flow.clip_flow import ClipFlow, find_cuts, find_occlusion
from attnctl.flow.fields import compose_flow, pick_frames, resize_flow, warp
from attnctl.flow.files import read_flow, save_flow
from attnctl.flow.lanes import Lanes, build_lanes
from attnctl.flow.pictures import colour_flow, flow_wheel
from attnctl.flow.providers import FlowProvider, estimate_flow, find_provider, list_providers

__all__ = [
    "ClipFlow",
    "FlowProvider",
    "Lanes",
    "build_lanes",
    "colour_flow",
    "compose_flow",
    "estimate_flow",
    "find_cuts",
    "find_occlusion",
    "find_provider",
    "flow_wheel",
    "list_providers",
    "pick_frames",
    "read_flow",
    "resize_flow",
    "save_flow",
    "warp",
]

"""Video files: any container that FFmpeg reads, animated pictures, folders of frames."""

from attnctl.video.clip import FrameRange, Video
from attnctl.video.reading import read_video
from attnctl.video.timing import resample_times
from attnctl.video.writing import read_video_record, write_video

__all__ = [
    "FrameRange",
    "Video",
    "read_video",
    "read_video_record",
    "resample_times",
    "write_video",
]

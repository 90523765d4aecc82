// Two clips beside each other: what one does, play, pause or seek, the other does too.
const clips = () => [...document.querySelectorAll("#ac-video-pair video")];
const follow = (event) => {
  if (!clips().includes(event.target)) return;
  for (const other of clips().filter((clip) => clip !== event.target)) {
    const apart = Math.abs(other.currentTime - event.target.currentTime);
    if (event.type === "seeked" && apart > 0.05) other.currentTime = event.target.currentTime;
    if (event.type === "play" && other.paused) other.play().catch(() => {});
    if (event.type === "pause" && !other.paused && !event.target.ended) other.pause();
  }
};
for (const kind of ["play", "pause", "seeked"]) document.addEventListener(kind, follow, true);

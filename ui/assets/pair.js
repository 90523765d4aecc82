// Two clips beside each other: what one does, play, pause or seek, the other does too.
const clips = () => [...document.querySelectorAll("#ac-video-pair video")];
const led = new Set(); // what the other one was told to do; its own event says nothing new
const lead = (clip, kind, action) => {
  led.add(clip.dataset.testid + kind);
  action();
};
const follow = ({ type, target }) => {
  if (!clips().includes(target) || led.delete(target.dataset.testid + type)) return;
  for (const other of clips().filter((clip) => clip !== target)) {
    const apart = Math.abs(other.currentTime - target.currentTime) > (target.paused ? 0.001 : 0.05); // seconds
    if (type === "play" && other.paused) lead(other, type, () => other.play().catch(() => {}));
    if (type === "pause" && !other.paused && !target.ended) lead(other, type, () => other.pause());
    if ((type === "seeked" || target.paused) && apart) lead(other, "seeked", () => { other.currentTime = target.currentTime; });
  }
};
for (const kind of ["play", "pause", "seeked"]) document.addEventListener(kind, follow, true);

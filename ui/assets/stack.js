// The stack of techniques: cards whose controls come from parameter records, and a timeline.
// value: {techniques: [{name, on, parameters}]}; props.records describes every technique,
// props.suggested holds settings by model and technique. Steps and model of the picture come as an
// event, so that a stack that is being restored is never overwritten.
const records = Object.fromEntries(props.records.map((record) => [record.name, record]));
const copy = (thing) => JSON.parse(JSON.stringify(thing));
let value = { techniques: [], ...copy(props.value || {}) };
Object.assign(mount.dataset, { steps: props.steps, model: props.model });
document.addEventListener(props.follows, (event) => {
  Object.assign(mount.dataset, event.detail);
  check();
});
let checks = 0;
let timer = null;

const commit = () => {
  props.value = copy(value);
  clearTimeout(timer);
  timer = setTimeout(check, 200);
};

const check = async () => {
  const mine = ++checks;
  const answer = value.techniques.length ? await server.check_stack({ ...copy(value), steps: Number(mount.dataset.steps), offered: props.offered }) : [];
  if (mine !== checks) return;
  timeline.replaceChildren(...drawTimeline(answer));
  [...cards.children].forEach((card, index) => {
    const problem = (answer[index] || {}).error || "";
    card.classList.toggle("ac-wrong", Boolean(problem));
    card.querySelector(".ac-problem").textContent = problem;
  });
};

const drawTimeline = (answer) => {
  const rows = answer.filter((row) => row.strengths);
  if (!rows.length) return [];
  const last = rows[0].strengths.length - 1;
  const cell = (strength, index) => h("i", {
    style: `opacity: ${strength ? 0.25 + 0.75 * Math.min(Math.abs(strength), 1) : 0.08}`,
    title: `step ${index}`,
  });
  return [
    h("p", { class: "ac-caption" }, "Who acts when"),
    ...rows.map((row) => h("div", { class: "ac-lane" + (row.on ? "" : " ac-off") },
      h("span", {}, row.name), h("div", { class: "ac-cells" }, ...row.strengths.map(cell)))),
    h("div", { class: "ac-lane ac-axis" }, h("span", {}, "step"),
      h("div", { class: "ac-ends" }, h("span", {}, "0"), h("span", {}, String(last)))),
  ];
};

const windowOf = (text) => {
  if (text === "always" || text === "") return [0, 100];
  const found = /^([\d.]+)?%?-([\d.]+)?%?$/.exec(text.replace(/\s/g, ""));
  if (!found || !text.includes("%")) return null;
  return [Number(found[1] || 0), Number(found[2] || 100)];
};

// Two handles on one track write "a-b%"; the text beside them also takes "every 5" or a ramp.
const stepsControl = (control, current, change) => {
  const text = h("input", { type: "text", value: current, "aria-label": "steps, as text" });
  const range = windowOf(current) || [0, 100];
  const handles = range.map((at, end) => h("input", {
    type: "range", min: 0, max: 100, step: 1, value: at,
    "aria-label": end ? "acts until, percent of the run" : "acts from, percent of the run",
    oninput: () => {
      let [from, to] = handles.map((handle) => Number(handle.value));
      if (from >= to) [from, to] = end ? [Math.max(to - 1, 0), Math.max(to, 1)] : [Math.min(from, 99), Math.min(from + 1, 100)];
      [handles[0].value, handles[1].value] = [from, to];
      text.value = from === 0 && to === 100 ? "always" : `${from}-${to}%`;
      mark();
      change(text.value);
    },
  }));
  const track = h("div", { class: "ac-track" }, ...handles);
  const mark = () => {
    track.style.setProperty("--from", `${handles[0].value}%`);
    track.style.setProperty("--to", `${handles[1].value}%`);
  };
  text.addEventListener("input", () => {
    const typed = windowOf(text.value);
    if (typed) [handles[0].value, handles[1].value] = typed;
    mark();
    change(text.value);
  });
  mark();
  return h("div", { class: "ac-when" }, track, text);
};

const wordsControl = (control, current, change) => h("input", {
  type: "text",
  value: current.join(", "),
  placeholder: "click words above, or write them: cat, red frog",
  "aria-label": control.name,
  oninput: (event) => change(event.target.value.split(",").map((word) => word.trim()).filter(Boolean)),
});

const inputFor = (control, current, change) => {
  const label = { "aria-label": control.name };
  if (control.kind === "steps") return stepsControl(control, current, change);
  if (control.kind === "words") return wordsControl(control, current, change);
  if (control.kind === "switch") {
    return h("input", { ...label, type: "checkbox", checked: current, onchange: (event) => change(event.target.checked) });
  }
  if (control.kind === "choice") {
    const options = control.choices.map((name) => h("option", { value: name, selected: name === current }, name));
    return h("select", { ...label, onchange: (event) => change(event.target.value) }, ...options);
  }
  if (control.kind === "number") {
    const bounded = control.low != null && control.high != null;
    const step = control.whole ? 1 : bounded ? (control.high - control.low) / 100 : "any";
    return h("input", {
      ...label, type: "number", inputmode: "decimal", min: control.low, max: control.high, step, value: current,
      oninput: (event) => change(event.target.value === "" ? null : Number(event.target.value)),
    });
  }
  return h("input", { ...label, type: "text", value: current, placeholder: "none", oninput: (event) => change(event.target.value) });
};

const rangeText = (control) => {
  if (control.kind !== "number" || control.low == null) return null;
  const text = control.high == null ? `from ${control.low}` : `${control.low} to ${control.high}`;
  return h("span", { class: "ac-range" }, text);
};

const field = (item, control) => {
  const current = item.parameters[control.name] ?? control.default;
  const change = (now) => {
    if (now === null) delete item.parameters[control.name];
    else item.parameters[control.name] = now;
    commit();
  };
  return h("div", { class: `ac-field ac-${control.kind}`, "data-parameter": control.name },
    h("div", { class: "ac-name" }, control.name, rangeText(control)),
    inputFor(control, current, change),
    h("p", { class: "ac-help" }, control.help));
};

const card = (item, index) => {
  const record = records[item.name];
  const move = (by) => () => {
    const [taken] = value.techniques.splice(index, 1);
    value.techniques.splice(index + by, 0, taken);
    show();
    commit();
  };
  const button = (sign, title, action, hidden) =>
    hidden ? null : h("button", { type: "button", class: "ac-tool", title, "aria-label": `${title}: ${item.name}`, onclick: action }, sign);
  const [first, rest] = [record.controls.filter((c) => isFirst(c)), record.controls.filter((c) => !isFirst(c))];
  return h("section", { class: "ac-card" + (item.on ? "" : " ac-off"), "data-technique": item.name },
    h("header", {},
      h("label", {},
        h("input", { type: "checkbox", checked: item.on, onchange: (event) => { item.on = event.target.checked; show(); commit(); } }),
        h("b", {}, item.name)),
      h("span", { class: "ac-tools" },
        button("↑", "act earlier in the chain", move(-1), index === 0),
        button("↓", "act later in the chain", move(1), index === value.techniques.length - 1),
        button("×", "take away", () => { value.techniques.splice(index, 1); show(); commit(); }))),
    h("p", { class: "ac-help" }, record.summary),
    h("p", { class: "ac-problem", role: "alert" }),
    ...first.map((control) => field(item, control)),
    h("details", { open: opened.has(item.name), ontoggle: (event) => opened[event.target.open ? "add" : "delete"](item.name) },
      h("summary", {}, `${rest.length} more settings`),
      ...rest.map((control) => field(item, control))));
};
const opened = new Set();
const isFirst = (control) => ["steps", "words"].includes(control.kind) || ["scale", "scale_factor", "strength"].includes(control.name);

const adder = () => {
  const free = props.records.filter((record) => record[props.offered] && !value.techniques.some((item) => item.name === record.name));
  return h("select", {
    class: "ac-adder",
    "aria-label": "add a technique",
    onchange: (event) => {
      const name = event.target.value;
      const parameters = copy((props.suggested[mount.dataset.model] || {})[name] || {});
      value.techniques.push({ name, on: true, parameters });
      show();
      commit();
    },
  }, h("option", { value: "" }, "+ add a technique"), ...free.map((record) => h("option", { value: record.name }, `${record.name}: ${record.summary}`)));
};

const timeline = h("div", { class: "ac-timeline" });
const cards = h("div", { class: "ac-cards" });
const foot = h("div", { class: "ac-foot" });
mount.append(timeline, cards, foot);
const show = () => {
  cards.replaceChildren(...value.techniques.map(card));
  foot.replaceChildren(adder());
};
watch("value", () => {
  value = { techniques: [], ...copy(props.value || {}) };
  show();
  check();
});
show();
check();

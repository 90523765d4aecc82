// A sentence whose words are buttons. value: {text, chosen: [word], picked}; "cat#2" is a second cat.
const show = () => {
  const { text = "", chosen = [] } = props.value || {};
  const seen = {};
  const parts = text.split(/([\p{L}\p{N}]+(?:['’-][\p{L}\p{N}]+)*)/u);
  mount.replaceChildren(...parts.map((part, index) => {
    if (index % 2 === 0) return document.createTextNode(part);
    const key = part.toLowerCase();
    seen[key] = (seen[key] || 0) + 1;
    const word = seen[key] > 1 ? `${part}#${seen[key]}` : part;
    return h("button", {
      type: "button",
      class: "ac-word",
      "data-word": word,
      "aria-pressed": String(chosen.includes(word)),
      title: props.hint,
      onclick: () => {
        props.value = { text, chosen, picked: word };
        trigger("pick");
      },
    }, part);
  }));
  mount.classList.toggle("ac-none", !text.trim());
};
watch("value", show);
show();

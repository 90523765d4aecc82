// A clicked word becomes a subject, or no longer one. Without a technique that takes words,
// Attend-and-Excite joins the stack; when its last word goes, so does it.
(sentence, stack) => {
  const suggested = "SUGGESTED";
  const word = sentence && sentence.picked;
  const cards = JSON.parse(JSON.stringify((stack && stack.techniques) || []));
  if (!word) return stack;
  let card = cards.find((one) => "WORDY".includes(one.name));
  if (!card) {
    const { model } = document.querySelector("#ac-techniques .ac-mount").dataset;
    const parameters = (suggested[model] || {})["attend-and-excite"] || {};
    card = { name: "attend-and-excite", on: true, parameters: { ...parameters } };
    cards.push(card);
  }
  const before = card.parameters.subjects || [];
  const after = before.includes(word) ? before.filter((one) => one !== word) : [...before, word];
  card.parameters.subjects = after;
  return { techniques: after.length ? cards : cards.filter((one) => one !== card) };
}

/*
Values -> what people read.

  treegrpo.el(tag, attributes, ...children)   an element; a string becomes a text node, a function a listener ("onclick")
  treegrpo.number(x), signed(x)               three decimals, "·" where there is none; with a plus sign
  treegrpo.mark(x)                            ▲ above 0, ▼ below, ■ at 0, "" where there is none
  treegrpo.tone(x, max)                       the class of a number's colour, centred at 0: "tone n5" ... "tone p5"
  treegrpo.scored(x, max)                     a cell of these three
  treegrpo.visible(text)                      one line of text, its control characters spelled out
  treegrpo.written(text)                      a fragment of text with line breaks, control characters spelled out
  treegrpo.segments(text)                     [{kind, tag, text}] of a turn; kind: "thought", "call", "answer", "text"
*/
(() => {
  const TONES = 5;
  const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/u;
  const HIDDEN_ALL = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu;
  const HIDDEN_BUT_BREAKS = /(?![\n\t])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu;
  const OPENING = /<([a-z_][\w-]{0,40})>/gi;
  const MAX_SEGMENTS = 100;

  const el = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (typeof value === "function") element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  };

  const number = (x) => {
    if (x === null || x === undefined || Number.isNaN(x)) return "·";
    if (x === 0) return "0.000";
    const size = Math.abs(x);
    return (size >= 5e-4 && size < 1e5 ? x.toFixed(3) : x.toExponential(0)).replace("-", "−").replace("e−", "e-");
  };
  const signed = (x) => (x > 0 ? `+${number(x)}` : number(x));
  const mark = (x) => (x > 0 ? "▲" : x < 0 ? "▼" : x === 0 ? "■" : "");
  const tone = (x, max) => {
    if (!(Math.abs(x) > 0)) return x === 0 ? "tone zero" : "tone none";
    const strength = Math.min(TONES, Math.max(1, Math.ceil((TONES * Math.abs(x)) / (max || 1) - 1e-9)));
    return `tone ${x > 0 ? "p" : "n"}${strength}`;
  };
  const scored = (x, max) =>
    el("span", { class: `scored ${tone(x, max)}` }, el("span", { class: "mark", "aria-hidden": "true" }, mark(x)), signed(x));

  const spelled = (char) => {
    const code = char.codePointAt(0);
    return code < 32 ? String.fromCodePoint(0x2400 + code) : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  };
  const visible = (text) =>
    HIDDEN.test(text) ? text.replace(/[\n\t]+/g, " ").replace(HIDDEN_ALL, spelled) : text;

  const written = (text) => {
    const fragment = document.createDocumentFragment();
    let end = 0;
    for (const found of text.matchAll(HIDDEN_BUT_BREAKS)) {
      if (found.index > end) fragment.append(text.slice(end, found.index));
      const code = found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      fragment.append(el("span", { class: "hidden-char", title: `control character U+${code}` }, spelled(found[0])));
      end = found.index + found[0].length;
    }
    fragment.append(text.slice(end));
    return fragment;
  };

  const kindOf = (tag) => (tag === "think" ? "thought" : tag === "answer" ? "answer" : "call");

  const segments = (text) => {
    const found = [];
    const add = (kind, tag, inside) => {
      if (inside.trim()) found.push({ kind, tag, text: inside.trim() });
    };
    let end = 0;
    const closed = text.indexOf("</think>");
    const opened = text.indexOf("<think>");
    if (closed >= 0 && (opened < 0 || opened > closed)) {
      add("thought", "think", text.slice(0, closed));
      end = closed + "</think>".length;
    }
    OPENING.lastIndex = end;
    for (let tries = 0, match; tries < MAX_SEGMENTS && (match = OPENING.exec(text)); tries++) {
      const tag = match[1];
      const close = text.indexOf(`</${tag}>`, OPENING.lastIndex);
      if (close < 0) continue;
      add("text", "", text.slice(end, match.index));
      add(kindOf(tag), tag, text.slice(OPENING.lastIndex, close));
      end = OPENING.lastIndex = close + tag.length + 3;
    }
    add("text", "", text.slice(end));
    return found;
  };

  Object.assign(treegrpo, { el, number, signed, mark, tone, scored, visible, written, segments, spelled });
})();

/*
Tokens as text, coloured by what they get or by how likely they were.

  treegrpo.tokenSpans(i, first, end)   spans of a node's tokens, with id and log-probability on hover and on focus
  treegrpo.tokenLegend()               how to read the colours
A token that was not sampled (the prompt, an observation) is masked: dim, dashed below, and named in its tooltip.
*/
(() => {
  const { nodes, state, el, number, signed, visible } = treegrpo;
  const MAX_TOKENS = 3000;

  const advantageOf = (i, inCall) => {
    const unmasked = treegrpo.column("unmasked_advantage");
    return unmasked && !inCall ? unmasked[i] : treegrpo.column("advantage")[i];
  };
  const surprise = (logprob) => {
    if (Number.isNaN(logprob)) return "tone none";
    const bits = -logprob / Math.LN2;
    return `tone s${Math.min(5, Math.max(0, Math.ceil(bits * 1.25 - 0.05)))}`;
  };
  treegrpo.percent = (logprob) => {
    const share = 100 * Math.exp(logprob);
    return share >= 99.95 ? "100%" : share >= 1 ? `${share.toFixed(1)}%` : `${share.toPrecision(2)}%`;
  };

  const said = (i, tokens, k) => {
    const id = tokens.ids[k];
    const about = [`token ${id}`];
    if (!tokens.sampled(k)) about.push("masked: not sampled, not trained");
    else {
      const logprob = tokens.logprobs[k];
      about.push(Number.isNaN(logprob) ? "log-probability not in the file" : `log-probability ${number(logprob)} (${treegrpo.percent(logprob)})`);
      about.push(`advantage ${signed(advantageOf(i, tokens.inCall(k)))}`);
      if (tokens.inCall(k)) about.push("part of a tool call");
    }
    return about.join(" · ");
  };

  treegrpo.tokenText1 = (i, id) => {
    const text = treegrpo.tokenText(nodes.tree[i], id);
    return text === null ? `#${id}` : text;
  };

  treegrpo.tokenSpans = (i, first = 0, end = Infinity) => {
    const tokens = treegrpo.tokens(i);
    const spans = [];
    const last = Math.min(end, tokens.size, first + MAX_TOKENS);
    const max = treegrpo.scale("advantage").max;
    for (let k = first; k < last; k++) {
      const masked = !tokens.sampled(k);
      const colour = masked ? "masked"
        : state.colouring === "logprob" ? surprise(tokens.logprobs[k])
          : treegrpo.tone(advantageOf(i, tokens.inCall(k)), max);
      const text = treegrpo.tokenText1(i, tokens.ids[k]);
      spans.push(el("span", {
        class: `token ${colour}${text.startsWith("#") && treegrpo.tokenText(nodes.tree[i], tokens.ids[k]) === null ? " id" : ""}`,
        title: said(i, tokens, k),
        tabindex: -1,
        "data-token": k,
      }, text.includes("\n") ? treegrpo.written(text.replace(/\n/g, "⏎\n")) : visible(text) || "∅"));
      if (treegrpo.isSpaced(nodes.tree[i])) spans.push(" ");
    }
    if (last < Math.min(end, tokens.size)) spans.push(el("span", { class: "more" }, ` … ${(Math.min(end, tokens.size) - last).toLocaleString("en")} more tokens`));
    return spans;
  };
})();

"use strict";
/*
The page's data. One global object, `treegrpo`; every other file adds to it.

Nodes are numbered through all trees of the page: `i` is a node of the page, and `i - start[tree]` its id in the file.
Arrays marked * are typed arrays over all nodes; NaN, or -1 in a column of counts, says that there is none.

  treegrpo.version, title            texts
  treegrpo.links                     [{label, href}] to other pages of the same trees, and to their index
  treegrpo.prompts[p]                {place, id, step, question, task, same, trees: [tree places]}
                                     step: a number or null; task: the dataset row as JSON text; same: the first prompt
                                     of this page with the same dataset row (to follow one prompt over steps)
  treegrpo.trees[t]                  {place, prompt, tree_id, start, end, file, line, meta, vocabulary}
                                     its nodes are start to end - 1, its root is start
  treegrpo.nodes                     {parent*, tree*, status*, depth*, num_leaves*, num_tokens*, num_sampled*, reward*,
                                     true_reward*, env_reward*, entropy*, confidence*, policy_version*, round*, draw*,
                                     num_tool_calls*, num_failed_tool_calls*, excerpt[], size}
                                     parent: a node of the page, -1 of a root; status: a place in treegrpo.statuses;
                                     excerpt: the turn on one line, its middle left out
  treegrpo.children(i)               children, ascending
  treegrpo.scorings[s]               {place, name, label, summary, formula, options, column(name)}
                                     place 0 is the file's own; column("value" | "advantage" | "weight" |
                                     "unmasked_advantage") is a Float64Array over all nodes, or null
  treegrpo.refused                   [{name, reason}] estimators that cannot score this file
  treegrpo.texts(t)                  {text[], observation[], error[], rewards[], other[], kept[], state_key[]} of one tree,
                                     by the node's id in the file; rewards and other: [[name, JSON text]] or null
  treegrpo.tokens(i)                 {ids, logprobs, sampled(k), inCall(k), size} of one node: ids a Uint32Array,
                                     logprobs a Float32Array (nats, NaN where not known)
  treegrpo.tokenText(t, id)          the token's text in that tree's vocabulary, or null
  treegrpo.isSpaced(t)               whether blanks stand between tokens

No name that comes from a file is used as a property of an object. Text enters the document by textContent alone.
*/
const treegrpo = (() => {
  const parsed = (name) => JSON.parse(document.getElementById(name).textContent);

  const bytes = (packed) => {
    const text = atob(packed);
    const array = new Uint8Array(text.length);
    for (let k = 0; k < array.length; k++) array[k] = text.charCodeAt(k);
    return array;
  };
  const column = (Type, packed) => new Type(bytes(packed).buffer);

  const index = parsed("treegrpo-index");
  const start = index.trees.start;
  const size = start[start.length - 1];

  const trees = index.trees.prompt.map((prompt, t) => ({
    place: t,
    prompt,
    tree_id: index.trees.tree_id[t],
    start: start[t],
    end: start[t + 1],
    file: index.trees.files[index.trees.file[t]],
    line: index.trees.line[t],
    meta: index.trees.metas[index.trees.meta[t]],
    vocabulary: index.trees.vocabulary[t],
  }));
  const prompts = index.prompts.id.map((id, p) => ({
    place: p,
    id,
    step: index.prompts.step[p],
    question: index.prompts.question[p],
    task: index.prompts.task[p],
    same: index.prompts.same[p],
    trees: [],
  }));
  for (const tree of trees) prompts[tree.prompt].trees.push(tree.place);

  const nodes = { size, excerpt: index.nodes.excerpt, status: bytes(index.nodes.status) };
  for (const name of ["reward", "true_reward", "env_reward", "entropy", "confidence"])
    nodes[name] = column(Float64Array, index.nodes[name]);
  for (const name of ["parent", "depth", "num_leaves", "num_tokens", "num_sampled", "policy_version", "round", "draw",
    "num_tool_calls", "num_failed_tool_calls"]) nodes[name] = column(Int32Array, index.nodes[name]);
  nodes.tree = new Int32Array(size);
  for (const tree of trees) {
    nodes.tree.fill(tree.place, tree.start, tree.end);
    for (let i = tree.start + 1; i < tree.end; i++) nodes.parent[i] += tree.start;
  }

  const firstChild = new Int32Array(size + 1);
  for (let i = 0; i < size; i++) if (nodes.parent[i] >= 0) firstChild[nodes.parent[i] + 1]++;
  for (let i = 0; i < size; i++) firstChild[i + 1] += firstChild[i];
  const order = new Int32Array(size);
  const filled = firstChild.slice();
  for (let i = 0; i < size; i++) if (nodes.parent[i] >= 0) order[filled[nodes.parent[i]]++] = i;

  const scorings = index.scorings.map((scoring, place) => {
    const decoded = new Map();
    return {
      place,
      name: scoring.name,
      label: scoring.label,
      summary: scoring.summary,
      formula: scoring.formula,
      options: scoring.options,
      column(name) {
        if (!decoded.has(name))
          decoded.set(name, scoring.columns[name] ? column(Float64Array, scoring.columns[name]) : null);
        return decoded.get(name);
      },
    };
  });

  const blocks = new Map();
  const texts = (t) => {
    if (!blocks.has(t)) {
      const block = parsed(`treegrpo-tree-${t}`);
      block.token_start = column(Int32Array, block.token_start);
      block.token_ids = column(Uint32Array, block.token_ids);
      block.flags = bytes(block.flags);
      block.logprobs = column(Float32Array, block.logprobs);
      if (blocks.size >= 64) blocks.delete(blocks.keys().next().value);
      blocks.set(t, block);
    }
    return blocks.get(t);
  };

  const tokens = (i) => {
    const tree = trees[nodes.tree[i]];
    const block = texts(tree.place);
    const [first, end] = [block.token_start[i - tree.start], block.token_start[i - tree.start + 1]];
    return {
      size: end - first,
      ids: block.token_ids.subarray(first, end),
      logprobs: block.logprobs.subarray(first, end),
      sampled: (k) => (block.flags[first + k] & 1) !== 0,
      inCall: (k) => (block.flags[first + k] & 2) !== 0,
    };
  };

  let vocabularies = null;
  const vocabulary = (t) => {
    vocabularies ??= parsed("treegrpo-vocabularies").map((block) => ({
      spaced: block.spaced,
      texts: new Map(block.ids.map((id, k) => [id, block.texts[k]])),
    }));
    return vocabularies[trees[t].vocabulary];
  };

  return {
    version: index.version,
    title: index.title,
    links: index.links,
    statuses: index.nodes.statuses,
    refused: index.refused,
    prompts,
    trees,
    nodes,
    scorings,
    texts,
    tokens,
    children: (i) => order.subarray(firstChild[i], firstChild[i + 1]),
    tokenText: (t, id) => vocabulary(t)?.texts.get(id) ?? null,
    isSpaced: (t) => vocabulary(t)?.spaced ?? true,
  };
})();

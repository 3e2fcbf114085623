"use strict";
/*
The data of an index of pages.

  treegrpo.title                texts
  treegrpo.prompts[p]           {place, id, question, step, trees, nodes, leaves, mean, std, href}
                                step: a number or null; mean, std: of the rewards of scored leaves, null where there are none
  treegrpo.steps[k]             {step, gap[], share[]} by depth from 1, null where nothing was compared
*/
const treegrpo = (() => {
  const { title, steps, prompts } = JSON.parse(document.getElementById("treegrpo-listing").textContent);
  const { id, question, step, trees, nodes, leaves, mean, std, href } = prompts;
  return {
    title,
    steps,
    prompts: id.map((name, p) => ({
      place: p, id: name, question: question[p], step: step[p], trees: trees[p], nodes: nodes[p], leaves: leaves[p],
      mean: mean[p], std: std[p], href: href[p],
    })),
  };
})();

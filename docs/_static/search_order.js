/* Results of the site's search: the journal and the evidence after all other pages. Numbers are Sphinx's own. */
var Scorer = {
  score: ([page, , , , score]) => (/^(journal|evidence)\//.test(page) ? score - 100 : score),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};

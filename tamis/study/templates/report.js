"use strict";
(async () => {
  const at = (id) => document.getElementById(id);
  const whole = new Intl.NumberFormat("en");
  const short = (x) => (x === null || x === undefined ? "–" : String(Number(x.toPrecision(4))));

  async function read() {
    // The page is painted first: charts and answers need no rows.
    await new Promise((done) => setTimeout(done));
    const element = at("data");
    if (!element.dataset.packed) return JSON.parse(element.textContent);
    const letters = atob(element.textContent);
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  // Text of rows enters the page through here alone, never as HTML.
  function make(name, text, kind) {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  }

  let data;
  try {
    data = await read();
  } catch (error) {
    at("found").textContent = "The rows cannot be unpacked by this browser (" + error + "); use one of 2023 or later. The rest of the page is complete.";
    return;
  }
  const { rows, queries, sources } = data;
  const byKey = new Map(data.views.map((view) => [view.key, view]));
  const panels = [...document.querySelectorAll(".panel")];
  const PAGE = 20;
  let view = data.views[0], ranks = [], page = 0, asked = [], askedPage = 0, lower = null;

  const nameOf = (q) => queries[q].task + " #" + queries[q].row;
  const nearestOf = (rank) => (view.places ? view.nearest[rank * view.places] : -1);
  const picksOf = (q) => view.picks[q - view.first];
  const queryOf = (rank) => (view.chooser ? view.chooser[rank] : nearestOf(rank));

  function lowered() {
    // Made at the first search; only then does a page need it.
    if (!lower) lower = rows.prompt.map((text, i) => (text + "\n" + rows.response[i] + "\n" + rows.id[i]).toLowerCase());
    return lower;
  }

  function option(select, value, text) {
    const made = make("option", text);
    made.value = value;
    select.append(made);
  }

  function show(key, focus) {
    view = byKey.get(key);
    for (const panel of panels) panel.hidden = panel.id !== key;
    at("pick").value = key;
    at("rows-of").textContent = document.getElementById(key + "-title").textContent;
    fill();
    filter();
    listQueries();
    if (focus) at(key).focus();
  }

  function fill() {
    const counts = new Map();
    for (const row of view.rows) counts.set(rows.source[row], (counts.get(rows.source[row]) || 0) + 1);
    at("source").replaceChildren();
    option(at("source"), "", "all");
    for (const [code, count] of [...counts].sort((a, b) => b[1] - a[1]))
      option(at("source"), code, sources[code] + " (" + whole.format(count) + ")");
    at("query").replaceChildren();
    option(at("query"), "", view.places ? "all" : "no queries were asked");
    at("query").disabled = !view.places;
    view.picks.forEach((count, i) => {
      const query = view.first + i;
      if (count) option(at("query"), query, nameOf(query) + " (" + whole.format(count) + ")");
    });
    const order = at("order").value;
    at("order").replaceChildren();
    option(at("order"), "rank", "order of choice");
    if (view.score) option(at("order"), "best", "score, best first");
    if (view.score) option(at("order"), "worst", "score, worst first");
    if (view.places) option(at("order"), "far", "farthest from its nearest query first");
    if (view.tokens) option(at("order"), "long", "most tokens first");
    if ([...at("order").options].some((o) => o.value === order)) at("order").value = order;
  }

  function filter() {
    const words = at("words").value.trim().toLowerCase();
    const source = at("source").value, query = at("query").value, order = at("order").value;
    const text = words ? lowered() : null;
    ranks = [];
    for (let rank = 0; rank < view.rows.length; rank++) {
      const row = view.rows[rank];
      if (source !== "" && rows.source[row] !== Number(source)) continue;
      if (query !== "" && queryOf(rank) !== Number(query)) continue;
      if (text && !text[row].includes(words)) continue;
      ranks.push(rank);
    }
    const low = (x) => (x === null ? -Infinity : x);
    const by = {
      best: (a, b) => low(view.score[b]) - low(view.score[a]) || a - b,
      worst: (a, b) => low(view.score[a]) - low(view.score[b]) || a - b,
      far: (a, b) => view.similarity[a * view.places] - view.similarity[b * view.places] || a - b,
      long: (a, b) => view.tokens[b] - view.tokens[a] || a - b,
    }[order];
    if (by) ranks.sort(by);
    page = 0;
    list();
  }

  function length(shown, total) {
    return shown < total ? " (shown " + whole.format(shown) + " of " + whole.format(total) + " characters)" : "";
  }

  function texts(into, of, i) {
    into.append(make("p", "Prompt" + length(of.prompt[i].length, of.prompt_chars[i]), "note"));
    into.append(make("pre", of.prompt[i], "prompt"));
    into.append(make("p", "Response" + length(of.response[i].length, of.response_chars[i]), "note"));
    into.append(make("pre", of.response[i], "response"));
  }

  function card(rank) {
    const row = view.rows[rank], item = make("li"), box = make("details"), summary = make("summary");
    const parts = ["rank " + whole.format(rank)];
    if (view.score) parts.push("score " + short(view.score[rank]));
    parts.push(sources[rows.source[row]]);
    if (view.tokens) parts.push(whole.format(view.tokens[rank]) + " tokens");
    const query = queryOf(rank);
    if (query >= 0) parts.push((view.chooser ? "chosen by " : "nearest to ") + nameOf(query));
    else if (view.task && view.task[rank]) parts.push("for " + view.task[rank]);
    summary.append(make("strong", parts[0]), " · " + parts.slice(1).join(" · "));
    summary.append(make("span", rows.prompt[row].slice(0, 200), "first"));
    box.append(summary);
    box.addEventListener("toggle", () => {
      if (!box.open || box.childElementCount > 1) return;
      box.append(make("p", "id " + rows.id[row], "note"));
      texts(box, rows, row);
      if (view.places) box.append(near(rank));
    });
    item.append(box);
    return item;
  }

  function near(rank) {
    const made = make("ul", undefined, "near");
    for (let place = 0; place < view.places; place++) {
      const query = view.nearest[rank * view.places + place];
      if (query < 0) continue;
      const item = make("li"), button = make("button", nameOf(query) + ", similarity " + short(view.similarity[rank * view.places + place]) + ": " + queries[query].prompt.slice(0, 100));
      button.type = "button";
      button.addEventListener("click", () => toQuery(query));
      item.append(button);
      made.append(item);
    }
    const all = make("div");
    all.append(make("p", "Nearest queries", "note"), made);
    return all;
  }

  function turn(total, now, name) {
    const pages = Math.max(1, Math.ceil(total / PAGE));
    at(name + "pages").hidden = pages < 2;
    at(name + "where").textContent = "page " + whole.format(now + 1) + " of " + whole.format(pages);
    at(name + "back").disabled = now === 0;
    at(name + "next").disabled = now >= pages - 1;
  }

  function list() {
    const from = page * PAGE, shown = ranks.slice(from, from + PAGE);
    at("list").replaceChildren(...shown.map(card));
    at("found").textContent = whole.format(ranks.length) + " of " + whole.format(view.rows.length) + " rows" + (ranks.length > PAGE ? ", " + whole.format(from + 1) + " to " + whole.format(from + shown.length) + " shown" : "");
    turn(ranks.length, page, "");
  }

  function listQueries() {
    asked = view.picks.map((_, i) => view.first + i).sort((a, b) => picksOf(b) - picksOf(a) || a - b);
    askedPage = 0;
    drawQueries();
  }

  function drawQueries() {
    const from = askedPage * PAGE;
    at("asked").replaceChildren(...asked.slice(from, from + PAGE).map(queryCard));
    at("asked-found").textContent = asked.length ? whole.format(asked.length) + " queries, those with the most rows first" : "This subset was chosen without queries.";
    turn(asked.length, askedPage, "asked-");
  }

  function queryCard(i) {
    const query = queries[i], item = make("li"), box = make("details"), summary = make("summary");
    summary.append(make("strong", nameOf(i)), " · " + (view.chooser ? "chose " : "nearest to ") + whole.format(picksOf(i)) + " rows");
    summary.append(make("span", query.prompt.slice(0, 200), "first"));
    const button = make("button", "Show its rows");
    button.type = "button";
    button.disabled = !picksOf(i);
    button.addEventListener("click", () => {
      at("words").value = "";
      at("source").value = "";
      at("query").value = String(i);
      filter();
      at("rows").scrollIntoView();
      at("query").focus({ preventScroll: true });
    });
    box.append(summary);
    const body = make("div");
    texts(body, { prompt: [query.prompt], response: [query.response], prompt_chars: [query.prompt_chars], response_chars: [query.response_chars] }, 0);
    box.append(body, button);
    item.append(box);
    return item;
  }

  function toQuery(i) {
    askedPage = Math.floor(asked.indexOf(i) / PAGE);
    drawQueries();
    const box = at("asked").children[asked.indexOf(i) % PAGE].firstChild;
    box.open = true;
    box.scrollIntoView();
    box.firstChild.focus({ preventScroll: true });
  }

  at("filter").hidden = false;
  at("filter").addEventListener("submit", (event) => event.preventDefault());
  let wait;
  at("words").addEventListener("input", () => { clearTimeout(wait); wait = setTimeout(filter, 150); });
  for (const id of ["source", "query", "order"]) at(id).addEventListener("change", filter);
  const step = (by) => () => { page += by; list(); at("rows").scrollIntoView(); };
  at("back").addEventListener("click", step(-1));
  at("next").addEventListener("click", step(1));
  const stepAsked = (by) => () => { askedPage += by; drawQueries(); at("queries").scrollIntoView(); };
  at("asked-back").addEventListener("click", stepAsked(-1));
  at("asked-next").addEventListener("click", stepAsked(1));
  document.querySelector(".choose").hidden = data.views.length < 2;
  at("pick").addEventListener("change", () => show(at("pick").value, false));
  const linked = () => { const key = location.hash.slice(1); if (byKey.has(key)) show(key, true); };
  window.addEventListener("hashchange", linked);
  show(byKey.has(location.hash.slice(1)) ? location.hash.slice(1) : data.views[0].key, false);
  document.documentElement.dataset.ready = "yes";
})();

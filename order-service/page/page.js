// The second half of the script of the page: what it shows and does. It uses requests.js.

// ---- the three services -------------------------------------------------------------------------------------------

const alive = {}; // by service: whether /livez answers

function watchService(name, url, about) {
  const card = copy('#service');
  setText(find('.name', card), name);
  setText(find('.about', card), about);
  setText(find('.docs', card), url.replace(/^.*:\/\//, ''));
  find('.docs', card).href = `${url}/docs`;
  find('#services').append(card);
  let ready; // the last response of /readyz
  let before = null; // the metrics one second ago

  const liveness = async () => {
    alive[name] = (await request(`${url}/livez`))?.status === 200;
    showHealth(card, name, ready);
  };
  const readiness = async () => {
    ready = await request(`${url}/readyz`, {}, 3 * SECOND); // it checks the store and the peers
    showHealth(card, name, ready);
  };
  const plots = PLOTS.map((plot) => ({ ...plot, values: [], element: copy('#plot') }));
  find('.plots', card).append(...plots.map((plot) => plot.element));
  const metrics = async () => {
    const response = await request(`${url}/metrics`);
    const now = response?.status === 200 ? readMetrics(response.text) : null;
    const change = now && before ? difference(before, now) : { rate: null, latency: null, errors: null };
    before = now;
    for (const plot of plots) {
      plot.values.push(change[plot.kind]);
      if (plot.values.length > SAMPLES) plot.values.shift();
      draw(plot);
    }
  };
  [liveness, readiness, metrics].forEach(everySecond);
}

/** Shows the health of a service as a shape, a word and a colour, and the health of its store and its peers. */
function showHealth(card, name, ready) {
  const { detail = 'no reason given', type, peers = {} } = body(ready);
  if (alive[name] === undefined || (alive[name] && ready === undefined)) return; // a response is missing
  const state = !alive[name] ? 'down' : ready?.status === 200 ? 'up' : 'unready';
  card.className = state;
  setText(find('.health', card), { up: '● up', unready: `▲ not ready: ${detail}`, down: '✕ down' }[state]);
  const storeFailed = type === 'urn:problem-type:store-unavailable';
  setText(find('.store', card), state === 'down' || !ready ? '–' : storeFailed ? 'does not answer' : 'answers');
  const calls = Object.entries(peers).map(([peer, health]) => `${peer} (${health})`);
  setText(find('.peers', card), state === 'up' ? calls.join(', ') || 'no service' : '–');
}

// ---- /metrics -----------------------------------------------------------------------------------------------------

/** Sums requests, errors and durations (by upper bound) over all routes except those for monitoring. */
function readMetrics(text) {
  const sums = { time: performance.now(), requests: 0, errors: 0, buckets: new Map() };
  for (const line of text.split('\n')) {
    const [, name, labels, value] = /^(\w+)\{(.*)\} (\S+)/.exec(line) ?? [];
    if (!name || /route="\/(livez|readyz|metrics)"/.test(labels)) continue;
    if (name === 'http_requests_total') {
      sums.requests += Number(value);
      if (/status="5/.test(labels)) sums.errors += Number(value); // the label is 503, or 5xx
    } else if (name === 'http_request_duration_seconds_bucket') {
      const bound = Number(/le="\+?([^"]+)"/.exec(labels)[1].replace('Inf', 'Infinity'));
      sums.buckets.set(bound, (sums.buckets.get(bound) ?? 0) + Number(value));
    }
  }
  return sums;
}

/** Returns the rates between two samples. A counter that became smaller belongs to a restarted process. */
function difference(before, now) {
  const restarted = now.requests < before.requests;
  const increase = (from, to) => to - (restarted ? 0 : from);
  const seconds = (now.time - before.time) / SECOND;
  const buckets = [...now.buckets].map(([bound, count]) => [bound, increase(before.buckets.get(bound) ?? 0, count)]);
  return {
    rate: increase(before.requests, now.requests) / seconds,
    errors: increase(before.errors, now.errors) / seconds,
    latency: percentile(0.95, buckets.sort(([a], [b]) => a - b)),
  };
}

/** Estimates a percentile, in milliseconds, from cumulative counts by upper bound. */
function percentile(share, buckets) {
  const all = buckets.at(-1)?.[1] ?? 0;
  if (all === 0) return null;
  let [low, below] = [0, 0];
  for (const [bound, count] of buckets) {
    if (count >= share * all) {
      const high = bound === Infinity ? low : bound;
      return SECOND * (low + (high - low) * ((share * all - below) / (count - below)));
    }
    [low, below] = [bound, count];
  }
}

// ---- plots --------------------------------------------------------------------------------------------------------

/** Draws the last minute, the newest sample at the right. A missing sample is a gap. */
function draw({ element, kind, what, unit, values }) {
  const number = (value) => (value === 0 || value >= 9.95 ? value.toFixed(0) : value.toFixed(1));
  const short = (value) => (value === null ? '–' : number(value) + unit);
  const top = Math.max(5, ...values);
  const x = (index) => index + SAMPLES - values.length;
  const y = (value) => (20 * (1 - value / top)).toFixed(2);
  let [curve, area, from] = ['', '', null];
  [...values, null].forEach((value, index) => {
    if (value === null && from !== null) area += `L${x(index - 1)},20L${x(from)},20Z`;
    if (value !== null && from === null) area += `M${x(index)},${y(value)}`;
    if (value !== null) {
      curve += from === null ? `M${x(index)},${y(value)}h0` : `L${x(index)},${y(value)}`;
      area += `L${x(index)},${y(value)}`;
    }
    from = value === null ? null : from ?? index;
  });
  element.className = kind;
  find('.curve', element).setAttribute('d', curve);
  find('.area', element).setAttribute('d', area);
  setText(find('.what', element), what);
  setText(find('b', element), short(values.at(-1)));
  const maximum = values.some((value) => value !== null) ? number(Math.max(...values)) : '–';
  setText(find('.most', element), `↑ ${maximum}`);
  const label = `${what} in the last minute: now ${short(values.at(-1))}, maximum ${maximum}${unit}`;
  find('svg', element).setAttribute('aria-label', label);
}

// ---- products and users -------------------------------------------------------------------------------------------

const money = new Intl.NumberFormat('en', { minimumFractionDigits: 2 });
const highestStock = new Map(); // by product; it is a full bar

const pollProducts = everySecond(async () => {
  const products = content(await request(`${PRODUCTS}/products?limit=8`));
  if (!products) return;
  setOptions('product', products);
  find('#products').replaceChildren(...products.map(({ id, name, price, stock }) => {
    highestStock.set(id, Math.max(stock, highestStock.get(id) ?? 0));
    const bar = make('span', '', { class: 'bar', 'aria-hidden': 'true' });
    bar.append(make('i'));
    bar.firstChild.style.width = `${(100 * stock) / (highestStock.get(id) || 1)}%`;
    const row = make('tr');
    const left = make('td', '', { class: 'number' });
    left.append(bar, make('span', stock));
    row.append(make('td', name), make('td', money.format(price), { class: 'number' }), left);
    return row;
  }));
});

const pollUsers = everySecond(async () => {
  if (find('select[name=user]').dataset.known || (ISSUER && !token)) return;
  const used = token;
  const response = await call(`${USERS}/users?limit=100`);
  if (used !== token) return;
  const users = content(response) ?? (response?.status === 403 ? [] : null); // only an admin may list users
  if (users) setOptions('user', ISSUER ? [MYSELF, ...users] : users);
});

/** Sets the options of a select element, unless it has them already. Keeps the selection. */
function setOptions(name, things) {
  const select = find(`select[name=${name}]`);
  const known = JSON.stringify(things.map((thing) => [thing.id, thing.name]));
  if (select.dataset.known === known || things.length === 0) return;
  const chosen = select.value;
  select.dataset.known = known;
  select.replaceChildren(...things.map((thing) => make('option', thing.name, { value: thing.id })));
  if (things.some((thing) => String(thing.id) === chosen)) select.value = chosen;
}

// ---- newest orders ------------------------------------------------------------------------------------------------
// The list is oldest first and a page starts `after` an id. Ids are UUIDs of version 7, which begin with their time, so
// an id can be made for any moment. Later the page remembers the id before the first order that it shows.

let after = null; // the id before the first shown order; null if unknown
const rows = new Map(); // by order id

function idAt(milliseconds) {
  const time = Math.max(0, Math.floor(milliseconds)).toString(16).padStart(12, '0');
  return `${time.slice(0, 8)}-${time.slice(8)}-7000-8000-000000000000`;
}

const ordersAfter = (id) => call(`${ORDERS}/orders?limit=1000&after=${id}`);

/** Returns an id shortly before the newest orders, by trying the last 1, 4, 16, … seconds. Null on failure. */
async function findStart() {
  for (let age = SECOND; age < Date.now(); age *= 4) {
    const id = idAt(Date.now() - age);
    const orders = content(await ordersAfter(id));
    if (!orders) return null;
    if (orders.length >= SHOWN_ORDERS) return id;
  }
  return idAt(0);
}

const pollOrders = everySecond(async () => {
  const used = token;
  if (ISSUER && !used) return;
  const start = after ?? await findStart();
  if (start === null || used !== token) return;
  after = start;
  let orders = [];
  for (let more = true; more;) {
    const response = await ordersAfter(after);
    const found = content(response);
    if (!found || used !== token) return;
    orders = found;
    if (found.length > SHOWN_ORDERS) after = found.at(-SHOWN_ORDERS - 1).id;
    more = response.headers.get('link')?.includes('rel="next"') ?? false;
  }
  if (orders.length < Math.min(SHOWN_ORDERS, rows.size)) after = null; // the store in memory was restarted
  orders = orders.slice(-SHOWN_ORDERS);
  const ids = new Set(orders.map((order) => order.id));
  for (const [id, row] of rows) {
    if (!ids.has(id) && rows.delete(id)) row.remove();
  }
  // An existing row stays the same element in its place, so its button keeps the focus.
  let older = null;
  for (const order of orders) {
    if (!rows.has(order.id)) find('#orders').insertBefore(newRow(order), older);
    older = rows.get(order.id);
    showStatus(older, order);
  }
  find('#no-orders').hidden = orders.length > 0;
});

function newRow(order) {
  const row = make('tr', '', { tabindex: -1 });
  const id = make('td');
  id.append(make('code', shortId(order.id), { title: order.id }));
  const lines = order.products.map(({ quantity, name }) => `${quantity} × ${name}`).join(', ');
  const time = new Date(order.createdAt).toLocaleTimeString('en-GB');
  const total = make('td', money.format(order.total), { class: 'number' });
  row.append(make('td', time), id, make('td', lines), total, make('td'), make('td', '', { class: 'number' }));
  const cancel = make('button', 'Cancel', { type: 'button', 'aria-label': `Cancel order ${shortId(order.id)}` });
  cancel.addEventListener('click', () => exclusively(() => cancelOrder(order.id, row)));
  row.lastChild.append(cancel);
  rows.set(order.id, row);
  return row;
}

const shortId = (id) => `…${id.slice(-8)}`;

function showStatus(row, { status }) {
  row.className = status;
  setText(row.cells[4], status);
  const button = find('button', row);
  if (button && !['pending', 'confirmed'].includes(status)) {
    if (document.activeElement === button) row.focus(); // otherwise the focus would be lost
    button.remove();
  }
}

// ---- placing and cancelling ---------------------------------------------------------------------------------------

let busy = false;
let unanswered = null; // an order whose outcome is unknown, and its key

/** Runs one action at a time, then updates the lists. */
async function exclusively(action) {
  if (busy) return;
  busy = true;
  find('#outcome').className = '';
  find('#outcome').replaceChildren(make('span', 'Sent; waiting for the response.', { class: 'quiet' }));
  for (const button of document.querySelectorAll('button')) button.setAttribute('aria-disabled', 'true');
  await action().catch(reportError);
  for (const button of document.querySelectorAll('button')) button.removeAttribute('aria-disabled');
  busy = false;
  pollOrders();
  pollProducts();
}

/** Shows a result: a mark, a headline and its meaning. */
function showOutcome(kind, headline, meaning) {
  const mark = { good: '✓', refused: '!', failed: '✕' }[kind];
  find('#outcome').className = kind;
  find('#outcome').replaceChildren(make('strong', `${mark} ${headline}`), make('span', meaning));
}

/** Shows a response that is not a success, and what the client can do. */
function showProblem(response) {
  if (!response) {
    const meaning = 'The order may have been placed. Send it again: it has the same key, so it is placed only once.';
    return showOutcome('failed', 'No response', meaning);
  }
  const { title = 'without a reason', detail = 'No details', errors = [] } = body(response);
  const reasons = errors.map((error) => `: ${error.detail}`).join('');
  const wait = response.headers.get('retry-after') ?? 1;
  const nothingSold = response.headers.get('content-type')?.includes('problem')
    && body(response).type?.endsWith(':peer-unavailable');
  const meaning = nothingSold ? 'Nothing was sold and no stock is reserved'
    : 'If the order was placed after all, the next try returns it, because it has the same key';
  const retry = `${meaning}: try again in ${wait} s (Retry-After).`;
  const kind = response.status < 500 ? 'refused' : 'failed';
  showOutcome(kind, `${response.status} ${title}`, `${detail}${reasons}. ${response.status === 503 ? retry : ''}`);
}

const send = (key, order) => call(`${ORDERS}/orders`, {
  method: 'POST', headers: { 'content-type': 'application/json', 'idempotency-key': key }, body: order,
}, 15 * SECOND);

const newKey = () => crypto.getRandomValues(new Uint32Array(4)).join('-');

async function once(order) {
  const key = unanswered?.order === order ? unanswered.key : newKey();
  const response = await send(key, order);
  unanswered = response?.status < 500 ? null : { key, order }; // the next try uses the same key
  if (response?.status !== 201) return showProblem(response);
  const replayed = response.headers.has('idempotent-replayed') ? ', which an earlier request placed' : '';
  showOutcome('good', '201 Created', `Order ${body(response).id}${replayed}`);
}

async function twice(order) {
  const key = newKey();
  const responses = [await send(key, order), await send(key, order)];
  const failed = responses.findIndex((response) => response?.status !== 201);
  if (failed >= 0) return showProblem(responses[failed]);
  const [first, second] = responses.map((response) => body(response).id);
  if (first !== second) return showOutcome('failed', '201 and 201: two orders', `${first} and ${second}`);
  const replayed = responses[1].headers.get('idempotent-replayed');
  const meaning = `${first} both times; the second response has Idempotent-Replayed: ${replayed}.`;
  showOutcome('good', '201 and 201: twice the same order, sold once', meaning);
}

/** Sends sixty orders from four senders. A browser has six connections per service; two stay free for monitoring. */
async function sixty(order) {
  const counts = { '201 Created': 0 };
  let left = 60;
  const sender = async () => {
    while (left-- > 0) {
      const response = await send(newKey(), order);
      const title = response?.status === 201 ? 'Created' : body(response).title ?? '';
      const result = response ? `${response.status} ${title}` : 'no response';
      counts[result] = (counts[result] ?? 0) + 1;
    }
  };
  await Promise.all([sender(), sender(), sender(), sender()]);
  const sold = counts['201 Created'];
  const list = Object.entries(counts).map(([result, count]) => `${count} × ${result}`).join(', ');
  const meaning = `${list}. The stock has decreased by exactly the units sold.`;
  showOutcome(sold === 60 ? 'good' : 'refused', `${sold} of 60 orders placed`, meaning);
}

async function cancelOrder(id, row) {
  const response = await call(`${ORDERS}/orders/${id}`, {
    method: 'PATCH', headers: { 'content-type': 'application/json' }, body: '{"status":"cancelled"}',
  }, 15 * SECOND);
  if (response?.status !== 200) return showProblem(response);
  showStatus(row, body(response));
  showOutcome('good', 'Cancelled', `${id}: its units return to the stock.`);
}

find('#order').addEventListener('submit', (event) => {
  event.preventDefault();
  const { user, product, quantity } = Object.fromEntries(new FormData(event.target));
  const line = { productId: Number(product), quantity: Number(quantity) };
  const order = JSON.stringify({ userId: user ? Number(user) : undefined, products: [line] });
  const action = { once, twice, sixty }[event.submitter?.value ?? 'once'];
  exclusively(() => action(order));
});

watchService('user-service', USERS, 'Owns the users');
watchService('product-service', PRODUCTS, 'Owns the products and their stock');
watchService('order-service', ORDERS, 'Owns the orders');

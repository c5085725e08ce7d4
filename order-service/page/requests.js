// The first half of the script of the page: requests, and sign-in. src/page.rs puts both halves into index.html.
'use strict';

const SECOND = 1000;
const SAMPLES = 60; // per plot: one minute
const SHOWN_ORDERS = 12;
const PLOTS = [
  { kind: 'rate', what: 'requests', unit: '/s' },
  { kind: 'latency', what: '95 % within', unit: ' ms' },
  { kind: 'errors', what: 'errors (5xx)', unit: '/s' },
];
const find = (selector, inside = document) => inside.querySelector(selector);
const copy = (template) => find(template).content.cloneNode(true).firstElementChild;
const query = new URLSearchParams(location.search);
const ISSUER = find('meta[name=sign-in]').content; // empty while sign-in is off
// With sign-in a link to this page must not decide which server gets the password and the token.
const baseUrl = (service, param) =>
  ((ISSUER ? null : query.get(param)) ?? find(`meta[name=${service}]`).content).replace(/\/$/, '');
const USERS = baseUrl('user-service', 'users');
const PRODUCTS = baseUrl('product-service', 'products');
const ORDERS = location.origin + location.pathname.replace(/\/+$/, ''); // behind a proxy the page may be at /shop/

// ---- requests -----------------------------------------------------------------------------------------------------

/** Sends a request. Returns the response, or null if there is none within `timeout` milliseconds. */
async function request(url, options = {}, timeout = SECOND) {
  try {
    const response = await fetch(url, { cache: 'no-store', signal: AbortSignal.timeout(timeout), ...options });
    return { status: response.status, headers: response.headers, text: await response.text() };
  } catch {
    return null;
  }
}

/** Returns the JSON of a response with status 200, else null. */
const content = (response) => (response?.status === 200 ? JSON.parse(response.text) : null);

/** Returns the JSON of any response; an error is a problem object. {} if a proxy sent something else. */
const body = (response) => (response?.headers.get('content-type')?.includes('json') ? JSON.parse(response.text) : {});

/** Calls `poll` every second while the page is visible. Returns a function that polls immediately. */
function everySecond(poll) {
  let wake = () => {};
  const loop = async () => {
    for (;;) {
      const pause = new Promise((resolve) => { wake = resolve; setTimeout(resolve, SECOND); });
      if (!document.hidden) await poll().catch(reportError);
      await pause;
    }
  };
  loop();
  document.addEventListener('visibilitychange', () => wake());
  return () => wake();
}

/** Sets the text of an element, if it differs: a screen reader announces each change. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Returns a new element with this text and these attributes. */
function make(tag, text = '', attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// ---- sign-in ------------------------------------------------------------------------------------------------------

let token = null; // only in memory: no other page and no later visit can read it

/** Sends a request with the token, if there is one. A 401 ends the sign-in. */
async function call(url, options = {}, timeout = SECOND) {
  const used = token;
  const headers = used ? { ...options.headers, authorization: `Bearer ${used}` } : options.headers;
  const response = await request(url, { ...options, headers }, timeout);
  if (response?.status === 401 && used && used === token) {
    const expired = body(response).detail?.includes('expired');
    setToken(null, expired ? 'Your sign-in has run out. Sign in again.' : 'The services do not accept your token.');
  }
  return response;
}

const MYSELF = { id: '', name: 'myself' };
const panel = ISSUER ? copy('#sign-in') : null;
const say = (message) => setText(find('.message', panel), message);

/** Replaces the token, and removes what the page shows of the caller before. */
function setToken(next, message) {
  token = next;
  for (const form of panel.querySelectorAll('form')) form.reset();
  showForms();
  say(message);
  [unanswered, after] = [null, null];
  rows.forEach((row) => row.remove());
  rows.clear();
  find('select[name=user]').replaceChildren();
  setOptions('user', [MYSELF]);
  delete find('select[name=user]').dataset.known;
  pollOrders();
  pollUsers();
}

let elsewhere = false; // whether another provider issues the tokens

function showForms() {
  find('.password', panel).hidden = elsewhere || token !== null;
  find('.token', panel).hidden = !elsewhere || token !== null;
  find('.out', panel).hidden = token === null;
}

/** Notices by a 404 that user-service issues no tokens. */
function notice(response) {
  elsewhere = response?.status === 404;
  showForms();
  if (elsewhere) say(`Sign in at ${ISSUER}, and paste the access token here.`);
}

async function signIn({ login, password }) {
  const account = login.includes('@') ? { email: login, password } : { username: login, password };
  const response = await request(`${USERS}/sessions`, {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(account),
  }, 15 * SECOND);
  const { accessToken, title, detail = 'user-service does not answer' } = body(response);
  if (accessToken) return setToken(accessToken, `Signed in as ${login}.`);
  if (response?.status === 404) return notice(response);
  const wait = response?.headers.get('retry-after');
  say(`${title ? `${title}: ` : ''}${detail}.${wait ? ` Try again in ${wait} s.` : ''}`);
}

if (panel) {
  find('main').prepend(panel);
  const submit = (form, action) => find(form, panel).addEventListener('submit', (event) => {
    event.preventDefault();
    action(Object.fromEntries(new FormData(event.target)));
  });
  submit('.password', (form) => signIn(form).catch(reportError));
  submit('.token', (form) => setToken(form.token.trim(), 'Signed in with a token.'));
  find('.out', panel).addEventListener('click', () => setToken(null, 'Signed out.'));
  setTimeout(async () => {
    setToken(null, '');
    notice(await request(`${USERS}/.well-known/openid-configuration`, {}, 5 * SECOND)); // only an issuer has it
  });
}

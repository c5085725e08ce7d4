// Sends requests to the three services, and validates each body against its schema. Fails if a call has no valid answer here.
'use strict';

const Ajv = require('ajv/dist/2020');
const addFormats = require('ajv-formats');

// A schema may allow null beside a type, and a member that `anyOf` requires is described outside of it.
const ajv = addFormats(new Ajv({ strict: true, allErrors: true, allowUnionTypes: true, strictRequired: false }));
ajv.addFormat('int32', true).addVocabulary(['example', 'openapi', 'info', 'servers', 'paths', 'components', 'tags']);

const USERS = process.env.USER_SERVICE_URL;
const PRODUCTS = process.env.PRODUCT_SERVICE_URL;
const ORDERS = process.env.ORDER_SERVICE_URL;
const ID = '01a2003e-e714-710e-a057-b9de0b11d83b';
const UNKNOWN = '01a2003e-e714-710e-a057-b9de0b11d83c';
const PATCH = 'application/merge-patch+json';
const documents = new Map();
const unanswered = new Set(); // the documented answers that no request has got

const pointer = (...parts) => parts.map((part) => `/${String(part).replaceAll('~', '~0').replaceAll('/', '~1')}`).join('');

/** Returns the part of the document at this path, and where it is, after its references. */
function find(service, ...path) {
  let [value, place] = [documents.get(service), path];
  for (const part of path) value = value?.[part];
  while (value?.$ref) {
    place = value.$ref.slice(2).split('/');
    value = place.reduce((inner, part) => inner[part], documents.get(service));
  }
  return [value, place];
}

function validate(what, service, place, value) {
  const check = ajv.compile({ $ref: `${documents.get(service).info.title}#${encodeURI(pointer(...place))}` });
  if (!check(value)) throw new Error(`${what}: ${JSON.stringify(value)}: ${ajv.errorsText(check.errors)}`);
}

/** Sends a request and validates its body, if it should be accepted, and the answer. Returns the answer. */
async function call(service, method, template, path, status, { body, headers = {}, type = 'application/json' } = {}) {
  const what = `${method} ${path} ${status}`;
  const operation = ['paths', template, method.toLowerCase()];
  const sent = { ...(body === undefined ? {} : { 'content-type': type }), ...headers };
  const response = await fetch(service + path, { method, headers: sent, body: body && JSON.stringify(body) });
  const text = await response.text();
  if (response.status !== status) throw new Error(`${what}: the status is ${response.status}: ${text}`);
  if (body !== undefined && status < 300) {
    validate(`${what}, request`, service, [...operation, 'requestBody', 'content', type, 'schema'], body);
  }
  const [documented, place] = find(service, ...operation, 'responses', status);
  if (!documented) throw new Error(`${what} is not documented`);
  const mediaType = Object.keys(documented.content ?? {})[0];
  if (!mediaType && text !== '') throw new Error(`${what}: no body is documented: ${text}`);
  if (mediaType) {
    if (response.headers.get('content-type') !== mediaType) throw new Error(`${what} is not ${mediaType}`);
    validate(what, service, [...place, 'content', mediaType, 'schema'], JSON.parse(text));
  }
  unanswered.delete(`${service} ${method} ${template} ${status}`);
  return { etag: response.headers.get('etag'), body: mediaType && JSON.parse(text) };
}

async function load(service) {
  const document = await (await fetch(`${service}/openapi.json`)).json();
  documents.set(service, document);
  ajv.addSchema(document, document.info.title);
  for (const [template, item] of Object.entries(document.paths)) {
    for (const [method, operation] of Object.entries(item).filter(([, { responses }]) => responses)) {
      const statuses = Object.keys(operation.responses).filter((status) => status < 400);
      statuses.forEach((status) => unanswered.add(`${service} ${method.toUpperCase()} ${template} ${status}`));
    }
  }
}

async function entity(service, list, post, patch) {
  const one = `${list}/{id}`;
  const { body: { id }, etag } = await call(service, 'POST', list, list, 201, { body: post });
  await call(service, 'GET', list, `${list}?limit=1000`, 200);
  await call(service, 'GET', one, `${list}/${id}`, 200);
  await call(service, 'GET', one, `${list}/${id}`, 304, { headers: { 'if-none-match': etag } });
  for (const type of ['application/json', PATCH]) await call(service, 'PATCH', one, `${list}/${id}`, 200, { body: patch, type });
  await call(service, 'PATCH', one, `${list}/${id}`, 412, { body: patch, headers: { 'if-match': '"x"' } });
  await call(service, 'PATCH', one, `${list}/${id}`, 415, { body: patch, type: 'text/plain' });
  await call(service, 'GET', list, `${list}?limit=0&x=1`, 400);
  return id;
}

async function main() {
  for (const service of [USERS, PRODUCTS, ORDERS]) {
    await load(service);
    await call(service, 'GET', '/livez', '/livez', 200);
    await call(service, 'GET', '/readyz', '/readyz', 200);
  }
  const account = { username: 'ada', email: 'ada@example.com', password: 'correct horse' };
  const user = await entity(USERS, '/users', account, { name: 'Ada', email: null, password: null });
  await call(USERS, 'POST', '/users', '/users', 409, { body: account });
  await call(USERS, 'POST', '/users', '/users', 400, { body: { name: '', email: 1 } });
  await call(PRODUCTS, 'GET', '/users', '/users', 200);

  // 599.99 and 8.29 are no multiples of 0.01 in floating point.
  const product = await entity(PRODUCTS, '/products', { name: 'Lamp', price: 599.99, stock: 9 }, { price: 8.29 });
  await call(PRODUCTS, 'POST', '/products', '/products', 400, { body: { name: '', price: 0.001 } });
  const [all, one] = ['/reservations', '/reservations/{orderId}'];
  const lines = (quantity) => ({ lines: [{ productId: product, quantity }] });
  await call(PRODUCTS, 'PUT', one, `${all}/${ID}`, 201, { body: lines(1) });
  await call(PRODUCTS, 'PUT', one, `${all}/${ID}`, 200, { body: lines(1) });
  await call(PRODUCTS, 'PUT', one, `${all}/${UNKNOWN}`, 409, { body: lines(100) });
  await call(PRODUCTS, 'GET', one, `${all}/${ID}`, 200);
  const { etag } = await call(PRODUCTS, 'GET', one, `${all}/${ID}`, 200);
  await call(PRODUCTS, 'GET', one, `${all}/${ID}`, 304, { headers: { 'if-none-match': etag } });
  const batch = [{ orderId: UNKNOWN, ...lines(1) }, { orderId: ID, ...lines(2) }];
  await call(PRODUCTS, 'POST', all, all, 200, { body: batch });
  await call(PRODUCTS, 'DELETE', one, `${all}/${UNKNOWN}`, 204);
  await call(PRODUCTS, 'DELETE', all, `${all}?ids=${ID}`, 204);

  const order = (quantity, price) => ({ userId: user, products: [{ productId: String(product), quantity, price }] });
  await entity(ORDERS, '/orders', order(3, 8.29), { status: 'confirmed' });
  await call(ORDERS, 'POST', '/orders', '/orders', 409, { body: order(1, 1.5) });
  await call(ORDERS, 'POST', '/orders', '/orders', 409, { body: order(1000) });
  await call(ORDERS, 'POST', '/orders', '/orders', 400, { body: { ...order(1), userId: 999 } });
  await call(ORDERS, 'GET', '/orders/{id}', `/orders/${ID}`, 404);

  await call(PRODUCTS, 'DELETE', '/products/{id}', `/products/${product}`, 204);
  await call(USERS, 'DELETE', '/users/{id}', `/users/${user}`, 204);
  // Sign-in is off here. `.ci/sign-in` checks the other answer.
  await call(USERS, 'POST', '/sessions', '/sessions', 404, { body: { username: 'john', password: 'correct horse' } });
  unanswered.delete(`${USERS} POST /sessions 200`);
  if (unanswered.size > 0) throw new Error(`no request got these answers:\n${[...unanswered].join('\n')}`);
  console.log('every documented success was answered, and each answer agrees with its schema');
}

main().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});

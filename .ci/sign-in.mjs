// The three parts of `.ci/sign-in`: the provider, the calls with its tokens, and the check of user-service's own tokens.

import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:https';

const library = (path) => import(`${process.env.TOOLS}/node_modules/${path}`);
const { USER_SERVICE_URL: USERS, PRODUCT_SERVICE_URL: PRODUCTS, ORDER_SERVICE_URL: ORDERS } = process.env;

// Each client gets tokens with one algorithm. Its claims stand for those of a user who signed in.
const CLIENTS = {
  admin: { alg: 'RS256', claims: { user_id: 2, roles: ['admin'] } },
  john: { alg: 'ES256', claims: { user_id: 1, roles: [] } },
  withoutUserId: { alg: 'RS256', claims: {} },
};

/** Serves an OpenID provider on a free port, and writes its address to a file. */
async function provider(folder) {
  const { default: Provider } = await library('oidc-provider/lib/index.js');
  const jwk = (alg, type, options) => ({ ...generateKeyPairSync(type, options).privateKey.export({ format: 'jwk' }), alg, use: 'sig', kid: alg });
  const tls = { key: readFileSync(`${folder}/tls.key`), cert: readFileSync(`${folder}/tls.pem`) };
  const server = createServer(tls).listen(0, '127.0.0.1', () => {
    const issuer = `https://127.0.0.1:${server.address().port}`;
    const provider = new Provider(issuer, {
      jwks: { keys: [jwk('RS256', 'rsa', { modulusLength: 2048 }), jwk('ES256', 'ec', { namedCurve: 'P-256' })] },
      clients: Object.keys(CLIENTS).map((client_id) => ({
        client_id, client_secret: 'secret', grant_types: ['client_credentials'], redirect_uris: [], response_types: [],
      })),
      extraTokenClaims: (_, token) => CLIENTS[token.clientId].claims,
      features: {
        devInteractions: { enabled: false },
        clientCredentials: { enabled: true },
        resourceIndicators: {
          enabled: true,
          getResourceServerInfo: (_, resource, client) => ({
            scope: '', audience: new URL(resource).hostname, accessTokenFormat: 'jwt', jwt: { sign: { alg: CLIENTS[client.clientId].alg } },
          }),
        },
      },
    });
    server.on('request', provider.callback());
    writeFileSync(`${folder}/issuer`, issuer);
  });
}

/** Returns a token of the provider for the client. */
async function token(issuer, client, audience = 'shop') {
  const { token_endpoint } = await (await fetch(`${issuer}/.well-known/openid-configuration`)).json();
  const body = new URLSearchParams({ grant_type: 'client_credentials', resource: `https://${audience}/` });
  const authorization = `Basic ${Buffer.from(`${client}:secret`).toString('base64')}`;
  const response = await fetch(token_endpoint, { method: 'POST', body, headers: { authorization } });
  const answer = await response.json();
  assert.equal(response.status, 200, JSON.stringify(answer));
  return answer.access_token;
}

async function call(method, url, token, body) {
  const headers = { ...(token && { authorization: `Bearer ${token}` }), ...(body && { 'content-type': 'application/json' }) };
  const response = await fetch(url, { method, headers, body: body && JSON.stringify(body) });
  const text = await response.text();
  return { status: response.status, body: text && JSON.parse(text) };
}

/** Calls the services with tokens of the provider. */
async function services(folder) {
  process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0'; // for this script; the services verify the certificate
  process.removeAllListeners('warning');
  const issuer = readFileSync(`${folder}/issuer`, 'utf8');
  const [admin, john, withoutUserId, elsewhere] = await Promise.all([
    token(issuer, 'admin'), token(issuer, 'john'), token(issuer, 'withoutUserId'), token(issuer, 'admin', 'elsewhere'),
  ]);
  const algorithm = (jwt) => JSON.parse(Buffer.from(jwt.split('.')[0], 'base64url')).alg;
  assert.deepEqual([algorithm(admin), algorithm(john)], ['RS256', 'ES256']);

  const expect = async (status, ...request) => {
    const answer = await call(...request);
    assert.equal(answer.status, status, `${request[0]} ${request[1]}: ${JSON.stringify(answer.body)}`);
    return answer.body;
  };
  assert.equal((await expect(200, 'GET', `${USERS}/users`, admin)).length, 2);
  assert.equal((await expect(200, 'GET', `${PRODUCTS}/users`, admin)).length, 2);
  await expect(403, 'GET', `${PRODUCTS}/users`, john);
  await expect(200, 'GET', `${USERS}/users/1`, john);
  await expect(403, 'GET', `${USERS}/users/2`, john);
  await expect(403, 'GET', `${USERS}/users/1`, withoutUserId);
  await expect(401, 'GET', `${USERS}/users/1`);
  await expect(401, 'GET', `${USERS}/users/1`, elsewhere);
  await expect(401, 'GET', `${USERS}/users/1`, `${john.slice(0, -4)}AAAA`);
  await expect(404, 'POST', `${USERS}/sessions`, undefined, { username: 'john', password: 'correct horse' });
  const products = [{ productId: 1, quantity: 1 }];
  const order = await expect(201, 'POST', `${ORDERS}/orders`, john, { products });
  assert.equal(order.userId, 1);
  await expect(403, 'POST', `${ORDERS}/orders`, john, { userId: 2, products });
  await expect(200, 'GET', `${ORDERS}/orders/${order.id}`, john);
  await expect(200, 'GET', `${ORDERS}/orders/${order.id}`, admin);
  await expect(403, 'POST', `${ORDERS}/orders`, withoutUserId, { userId: 1, products });
  assert.deepEqual(await expect(200, 'GET', `${ORDERS}/orders`, withoutUserId), []);
  console.log(`${issuer}: tokens with RS256 and ES256 are accepted from oidc-provider, over TLS`);
}

/** Verifies a token of user-service with jose. */
async function tokens() {
  const { createRemoteJWKSet, jwtVerify } = await library('jose/dist/node/esm/index.js');
  const account = { username: 'ada', password: 'a password of Ada' };
  const user = await call('POST', `${USERS}/users`, undefined, account);
  assert.equal(user.status, 201, JSON.stringify(user.body));
  const session = await call('POST', `${USERS}/sessions`, undefined, account);
  assert.equal(session.status, 200, JSON.stringify(session.body));
  assert.equal(session.body.tokenType, 'Bearer');
  const keys = createRemoteJWKSet(new URL(`${USERS}/.well-known/jwks.json`));
  const options = { issuer: 'http://issuer.example', audience: 'shop', typ: 'at+jwt', algorithms: ['EdDSA'] };
  const { payload } = await jwtVerify(session.body.accessToken, keys, options);
  assert.equal(payload.sub, String(user.body.id));
  assert.equal(payload.user_id, user.body.id);
  assert.equal(payload.exp - payload.iat, session.body.expiresIn);
  for (const claim of ['client_id', 'jti', 'roles']) assert.ok(payload[claim] !== undefined, `${claim} is missing`);
  await assert.rejects(jwtVerify(session.body.accessToken, keys, { ...options, audience: 'another' }));
  console.log('jose verifies the tokens of user-service');
}

await { provider, services, tokens }[process.argv[2]](...process.argv.slice(3));

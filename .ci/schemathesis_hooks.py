"""What .ci/schemathesis cannot learn from an OpenAPI document. No check is off; what is let pass here is known by the
problem's own words, so a refusal for any other reason still counts."""

import schemathesis
from schemathesis.openapi.checks import RejectedPositiveData

LINES = {"POST /orders": "products", "PUT /reservations/{orderId}": "lines"}

# Right in itself, and refused for what there is or is not: a schema speaks of the request alone.
STATE = {
    "urn:problem-type:precondition-failed": {"PATCH", "DELETE"},
    "urn:problem-type:user-not-found": {"POST /orders"},
    "urn:problem-type:product-not-found": set(LINES),
    "urn:problem-type:idempotency-key-reused": {"POST /orders"},
}


@schemathesis.hook
def map_body(context, body):
    """Orders users and products that there are, each product once: else nearly every order is for nobody."""
    body = whole(body)
    lines = LINES.get(context.operation.label)
    if lines and isinstance(body, dict):
        if is_id(body.get("userId")):
            body["userId"] = 1 + int(body["userId"]) % 2
        for index, line in enumerate(body[lines] if isinstance(body.get(lines), list) else []):
            if isinstance(line, dict) and is_id(line.get("productId")):
                line["productId"] = type(line["productId"])(1 + index % 100)
    if context.operation.label == "PATCH /orders/{id}" and isinstance(body, dict) and body.get("status") == "pending":
        body["status"] = ("cancelled", "confirmed")[len(body) % 2]  # what an order that is pending can become
    return body


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """False lets a failure pass."""
    if isinstance(failure, RejectedPositiveData):
        problem = response.json()
        if {case.method, case.operation.label} & STATE.get(problem["type"], set()):
            return False
        # `uniqueItems` compares whole lines, and here a product may not be there twice whatever its quantity.
        errors = problem.get("errors", [])
        return not errors or any(error["detail"] != "is in an earlier line already" for error in errors)
    if failure.code == "ST201" and case.operation.label == "POST /reservations" and response.status_code == 200:
        # Each item is read and answered on its own: a bad one gets its 400 inside.
        return all(outcome["status"] != 400 for outcome in response.json())
    return True


def whole(value):
    """With 2.0 as 2: an integer to JSON Schema, and not to the services."""
    if isinstance(value, dict):
        return {name: whole(member) for name, member in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_id(value):
    digits = str(value) if type(value) in (int, str) else ""
    return digits.isascii() and digits.isdigit() and digits[0] != "0" and int(digits) < 2**63

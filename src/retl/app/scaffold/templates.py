"""`retl init --template`: projects for what people build first, valid as they are, with one sync to adapt.

Their models, tables and columns are examples. Nothing is read and nothing is asked.
"""

from __future__ import annotations

from retl.app.scaffold import ENVIRONMENT, TRY, Template, files

BESIDE_DBT = """\
# This project stands beside a dbt project. Both paths are relative to this file.
warehouse:
  path: ../analytics/warehouse.duckdb # the file that dbt builds: `path` in its profiles.yml
  dbt: ../analytics/target # dbt's target folder: whether its last run and its tests were good
"""

CUSTOMERS = """\
# The dbt model `customers` → a table in PostgreSQL. Only rows that changed are sent.
description: Customers for the CRM
source: {dbt: customers, max_age: 26h} # refused if dbt's run or a test failed, or if it is older
key: [customer_id] # unique, never NULL
contract: # name what is special; "*" takes every other column as the warehouse and dbt describe it
  customer_id: {type: integer, ge: 1}
  "*": "*"
destination: {type: postgres, table: crm.customers, create: true}
write: upsert
deletes: keep # or delete: a customer that left the model is deleted from the table
freshness: 26h # `retl status` says stale when the last success is older
"""

HUBSPOT_URL = "${HUBSPOT_URL:-https://api.hubapi.com}"
HUBSPOT = f"""\
# A private app of HubSpot with the scopes crm.objects.contacts.read and crm.objects.contacts.write.
# HUBSPOT_URL is for tries against the fake HubSpot of `retl demo --serve`; leave it out for the real one.
connections:
  hubspot: {{type: hubspot, base_url: "{HUBSPOT_URL}", token: "${{HUBSPOT_TOKEN}}"}}
"""

CONTACTS = """\
# The dbt model `customers` → contacts in HubSpot, found by their e-mail address.
description: Customers as HubSpot contacts
source: {dbt: customers, max_age: 26h} # refused if dbt's run or a test failed, or if it is older
key: [email]
contract:
  email: {type: string, min_length: 3, sensitive: true} # sensitive: masked in all that retl prints and stores
  "*": "*"
fields: # HubSpot's property ← a column of the model. What is not named here is never written
  firstname: first_name
  lastname: {column: last_name, nulls: keep} # NULL does not empty the property
  lifecyclestage: {value: customer} # a constant
destination: {connection: hubspot, object: contacts, match: email}
deletes: keep
freshness: 26h
"""

SLACK = """\
warehouse:
  type: duckdb
  path: data/warehouse.duckdb # or DUCKDB_PATH
connections:
  slack: {type: slack, url: "${SLACK_URL}"} # the address of an incoming webhook is the secret
vars: {run_date: today} # $run_date in SQL
"""

MESSAGES = """\
# Each row becomes one message, once. A message cannot be taken back, so each choice below is made on purpose.
description: What the team should see
source:
  sql: | # or {table: mart_alerts}. `text` is the message
    SELECT 'signups-' || CAST($run_date AS DATE) AS alert_id,
           'Signups of ' || CAST($run_date AS DATE) || ': 42' AS text
key: [alert_id] # a key is sent once, ever: put into it what makes a message new
fields: {text: text}
destination: {connection: slack, text: text}
write: append
first_run: send # after the first run write adopt: if the state is ever lost, nothing is sent twice
delivery: at_most_once # a lost answer leaves a message in doubt; at_least_once may post it twice
"""

CONFIG_HUBSPOT = """\
# Secrets and addresses of this machine. Do not commit this file. The process's environment wins.
#HUBSPOT_TOKEN_FILE=/run/secrets/hubspot
"""

CONFIG_SLACK = """\
# Secrets and addresses of this machine. Do not commit this file. The process's environment wins.
#DUCKDB_PATH=data/warehouse.duckdb
#SLACK_URL_FILE=/run/secrets/slack
"""

PATHS = "set `path` and `dbt` in retl.yml, and run `dbt build`"


def _steps(first: str, adapt: str, sync: str) -> tuple[str, ...]:
    look = (f"retl explain {sync} --rows 1", "retl sync --dry-run", "retl sync")
    return (first, TRY, f"set {adapt} in syncs/{sync}.yml", "retl validate", *look)


TEMPLATES: dict[str, Template] = {
    "dbt-to-postgres": Template(
        files(BESIDE_DBT, "customers", CUSTOMERS, ENVIRONMENT),
        _steps(PATHS, "model, key and table", "customers"),
    ),
    "dbt-to-hubspot": Template(
        files(BESIDE_DBT + HUBSPOT, "contacts", CONTACTS, CONFIG_HUBSPOT),
        _steps(PATHS, "model, key and fields", "contacts"),
    ),
    "slack": Template(
        files(SLACK, "messages", MESSAGES, CONFIG_SLACK),
        _steps("set warehouse.path in retl.yml, if your warehouse is another file", "the SELECT", "messages"),
    ),
}

"""The data model in Redis, and the only place that builds keys (scripts add the few they learn by reading).

Everything an account owns carries its partition's hash tag, so one script writes it all, on one node or a cluster.
Names that callers choose may hold any printable character, colons too. So a key has one of them, at its end or before parts
that hold no colon, or says how long it is: no two things share a key. `{p17}` stands for the partition's tag (`engine.partitions.tags`); `pg` for `PULSEGATE_PREFIX`.

| key                              | type   | holds                                                       | forgotten            | bytes |
|----------------------------------|--------|-------------------------------------------------------------|----------------------|-------|
| pg:{p17}:leases:<account>        | zset   | session with its record (lua/lib/record.lua) → when its lease expires (ms); below 0: it holds none, and is forgotten then | records 30 min after their end, by the sweep | 240–300 a session |
| pg:{p17}:deadlines               | zset   | the ticks (¼ s) at which some account is due                | by the sweep         |       |
| pg:{p17}:due:<tick>              | set    | accounts the sweep must look at then                        | by the sweep         | 30 an account |
| pg:{p17}:request:<verb>:<n>:<account>:<id> | string | the answer to a request id; n is the account's length | 10 min               |       |
| pg:{p17}:takeovers:<account>     | string | takeovers lately                                            | 10 min               |       |
| pg:{p17}:seen:<account>:<day>    | set    | 8-byte digests of the tracking events of that day (UTC)      | at the end of the next day | 11–18 an event; 45 above 127 a day |
| pg:{p17}:seen:<account>:<day>:n  | hash   | digest of a series, number ÷ 512 → a bit for each number that came (CMCD reports) | the same | 150 a session, and 1/8 a report |
| pg:{p17}:proof                   | string | that the node took a write lately (lua/prove.lua)           | 1 min                | 70 a node |
| pg:{p17}:outbox                  | stream | events, one JSON field `e`                                  | behind what the log has on disk |       |
| pg:{p17}:held                    | hash   | rule → leases held in this partition                        | never, a field a rule |      |
| pg:{p17}:audience                | zset   | `<kind>\\t<content>\\t<provider>` → views watched now in this partition; with `\\t@` → accounts | with its last view | 40 an entry |
| pg:{p17}:deltas                  | hash   | the same → change since the last claim                      | by the next claim, in seconds | |
| pg:{p17}:claimed                 | hash   | the same → change in the claim under way; field '' is its number | by the next claim | |
| pg:{p17}:spill                   | list   | events that found the outbox full, until an API process has them on its disk | by that, in seconds; the newest `outbox_max` are kept | 400 an event |
| pg:{p17}:lost                    | string | events pushed out of a full spill, ever                     | never                |       |
| pg:{c:<content>}:viewers:5m:<n>, :1h:<n> | HLL | accounts that watched in these 5 minutes (ms ÷ 300,000), this hour | 65 min, 25 h after the last new one | 100–3,000 up to about 1,000 accounts, then 12,000 |
| pg:{api}:processes               | zset   | API process → last announcement (ms)                        | when it has vanished |       |
| pg:{api}:outage                  | hash   | began, ended, last (ms)                                     | never, three fields  |       |
| pg:{api}:revoked                 | zset   | revoked token id (`jti`) → when it may be forgotten (s)     | trimmed on write     |       |
| pg:layout                        | hash   | partitions, schema, in a simulation `clock`: fixed when the deployment is created | never |   |

The log Redis, which is never a cluster, holds:

| key                              | type   | holds                                                       | forgotten            | bytes |
|----------------------------------|--------|-------------------------------------------------------------|----------------------|-------|
| pg:{p17}:log:<topic>             | stream | the events of the outbox under the same ids                 | behind the lake and the slowest projection | 250–400 an event |
| pg:{log}:mirrored                | hash   | partition → last id of its outbox that the log has; `large:<partition>` → last id of an event above 2 KB | never, two fields a partition |  |
| pg:{log}:trimmed                 | hash   | partition → last id that its log may have forgotten          | never, a field a partition |  |
| pg:{log}:cursor:<consumer>:<gen> | hash   | partition → last id the consumer has committed              | with its generation  |       |
| pg:{log}:suspects                | hash   | silent view that the session Redis does not know → its outbox's last id then | 10 min |  |
| pg:{log}:generations             | hash   | projection → its live generation                            | never, a field a projection | |
| pg:{log}:<projection>:<gen>:…    | any    | a projection's state; its consumer's module says what       | by the projection    |       |
| pg:{log}:quality:<gen>:of:<account>, :heard | hash, zset | session → what the fold keeps of it; when it was last heard of | 12 h of silence; newest 1,000 an account | 300 a session |
| pg:{log}:dead:<consumer>         | stream | events it could not handle, each with the reason            | newest 10,000 kept, and 64 MiB | |
| pg:{log}:bad                     | stream | rejected tracking events, each with the reason              | newest 100,000 kept, and 64 MiB; of an account 1 MiB | |
| pg:{log}:bad:sizes, :dead:<consumer>:sizes | hash | account → bytes of its entries there; '' → of all     | with the entries     | 40 an account |
| pg:{log}:backoff:<sink>          | hash   | failures in a row, why, `until` (ms) it is left alone, by group | 2 h after the last failure | |
| pg:{log}:flight:<sink>           | hash   | group → JSON: the batch under way, as positions after it     | when it has arrived  |       |
| pg:{trending}:totals             | hash   | `<kind>\\t<content>\\t<provider>` → views watched now       | with the last view   | 60 an entry |
| pg:{trending}:accounts           | hash   | the same → accounts now: one counts once however many views it has | with the last view | 60 an entry |
| pg:{trending}:applied            | hash   | partition → number of the last claim in the totals; `recounts` | never, a field a partition | |
| pg:{trending}:recount, :recounted | hash, set | the totals added up anew, and the partitions that are in  | when all are         |       |
| pg:{trending}:list:<kind>:<rank>[:<provider>] | string | a published list, JSON; all of them are written at once | overwritten | 25,000 a list |
| pg:{trending}:published          | channel | ms when lists were published; `contents` when the catalogue changed | | |
| pg:{trending}:took               | hash   | the last publication: `at` (ms), `claims_ms` of the claims before it, `publication_ms` | overwritten | |
| pg:{trending}:state              | hash   | kind, provider, part → what a detector has learned (engine/trending/state.py); `version` | with its scope | 24 a content, 336 with its week |
| pg:{trending}:providers          | set    | providers that occur in the totals                          | overwritten          |       |
| pg:{trending}:contents           | hash   | content → JSON {kind, title, runtime (s), provider, hidden}: the catalogue | when it is removed | 100–200 a content |
| pg:{trending}:contents:version   | string | counts the changes of the catalogue                         | never                |       |
| pg:{trending}:series:<kind>:<content> | string | views watched, one 6-byte slot a minute for 6 h (engine/audience.py); `series::` has the sum of all | 6 h after the last, the sum a day | 2,700 a content |
| pg:{alerts}:states, :told, :sent | hash, stream, string | alerts: engine/alerts/store.py says what  | 10,000 told are kept | 200 a rule and group |
| pg:{work}:owner:<job>:<group>    | string | who owns a group of partitions                              | 5 s                  |       |
| pg:{work}:groups                 | string | into how many groups those at work divide the partitions    | 10 s after the last of them | |
| pg:{work}:skipped                | hash   | job → what it could not read in Redis and left out, ever (workers/troubles.py) | never, a field a job | |
| pg:{clock}:asked, :answered      | list   | simulations only: what is due by the virtual clock, and that it was done (api/clock.py) | by the next | |

A lease holds a slot under every rule its record names. An account that has a record always has a deadline, so neither
can be forgotten and neither needs an expiry.
"""

from __future__ import annotations

from engine.partitions import partition_of, tags


def sizes(key: str) -> str:
    """How many bytes a kept stream has, by account."""
    return f"{key}:sizes"


class AccountKeys:
    """The keys of one account, ready for a script call."""

    __slots__ = ("account", "base", "deadlines", "leases", "outbox")

    def __init__(self, base: str, deadlines: str, outbox: str, account: str) -> None:
        self.base, self.deadlines, self.outbox, self.account = base, deadlines, outbox, account
        self.leases = f"{base}:leases:{account}"

    @property
    def takeovers(self) -> str:
        return f"{self.base}:takeovers:{self.account}"

    @property
    def seen(self) -> str:
        """What the sets of tracking events seen begin with; `:<day>` follows."""
        return f"{self.base}:seen:{self.account}"

    def request(self, verb: str, request_id: str) -> str:
        """`verb` is one of ours. The length says where the account ends, for both names are anybody's."""
        return f"{self.base}:request:{verb}:{len(self.account)}:{self.account}:{request_id}"


class Space:
    """The keys of one projection in the log Redis. A replay builds the next generation beside the live one."""

    __slots__ = ("_base", "generation", "name")

    def __init__(self, prefix: str, name: str, generation: int) -> None:
        self.name, self.generation = name, generation
        self._base = f"{prefix}:{{log}}:{name}:{generation}"

    def key(self, *parts: str) -> str:
        return ":".join((self._base, *parts))


class Keys:
    """Builds every key of a deployment."""

    def __init__(self, prefix: str, partitions: int) -> None:
        self.prefix = prefix
        self.partitions = partitions
        self._bases = tuple(f"{prefix}:{{{tag}}}" for tag in tags(partitions))
        self._parts = tuple((base, f"{base}:deadlines", f"{base}:outbox") for base in self._bases)
        self.processes = f"{prefix}:{{api}}:processes"
        self.outage = f"{prefix}:{{api}}:outage"
        self.revoked = f"{prefix}:{{api}}:revoked"
        self.layout = f"{prefix}:layout"

    def account(self, account: str) -> AccountKeys:
        return AccountKeys(*self._parts[partition_of(account, self.partitions)], account)

    def deadlines(self, partition: int) -> str:
        return f"{self._bases[partition]}:deadlines"

    def due(self, partition: int, tick: int) -> str:
        return f"{self._bases[partition]}:due:{tick}"

    def outbox(self, partition: int) -> str:
        return f"{self._bases[partition]}:outbox"

    def proof(self, partition: int) -> str:
        return f"{self._bases[partition]}:proof"

    def audience(self, partition: int) -> str:
        return f"{self._bases[partition]}:audience"

    def deltas(self, partition: int) -> str:
        return f"{self._bases[partition]}:deltas"

    def claimed(self, partition: int) -> str:
        return f"{self._bases[partition]}:claimed"

    def spill(self, partition: int) -> str:
        return f"{self._bases[partition]}:spill"

    def lost(self, partition: int) -> str:
        return f"{self._bases[partition]}:lost"

    def held(self, partition: int) -> str:
        return f"{self._bases[partition]}:held"

    def log(self, partition: int, topic: str) -> str:
        return f"{self._bases[partition]}:log:{topic}"

    @property
    def mirrored(self) -> str:
        return f"{self.prefix}:{{log}}:mirrored"

    @property
    def trimmed(self) -> str:
        return f"{self.prefix}:{{log}}:trimmed"

    def cursor(self, consumer: str, generation: int = 0) -> str:
        return f"{self.prefix}:{{log}}:cursor:{consumer}:{generation}"

    @property
    def suspects(self) -> str:
        return f"{self.prefix}:{{log}}:suspects"

    @property
    def generations(self) -> str:
        return f"{self.prefix}:{{log}}:generations"

    def dead(self, consumer: str) -> str:
        return f"{self.prefix}:{{log}}:dead:{consumer}"

    def backoff(self, sink: str) -> str:
        return f"{self.prefix}:{{log}}:backoff:{sink}"

    def flight(self, sink: str) -> str:
        return f"{self.prefix}:{{log}}:flight:{sink}"

    @property
    def bad(self) -> str:
        return f"{self.prefix}:{{log}}:bad"

    def projection(self, name: str, generation: int) -> Space:
        return Space(self.prefix, name, generation)

    def stem(self, *parts: str) -> str:
        """What keys of the log Redis have in common that differ by a generation, which follows (lua/projected.lua)."""
        return ":".join((f"{self.prefix}:{{log}}", *parts))

    def queue(self, name: str) -> str:
        """The name of one of RQ's queues: tenures, asks, and each export's."""
        return f"{self.prefix}:{name}"

    def viewers(self, content: str, window: str, number: int) -> str:
        """The accounts that watched a content in one bucket: `window` is 5m or 1h, `number` ms ÷ its length."""
        return f"{self.prefix}:{{c:{content}}}:viewers:{window}:{number}"

    @property
    def totals(self) -> str:
        return f"{self.prefix}:{{trending}}:totals"

    @property
    def accounts(self) -> str:
        return f"{self.prefix}:{{trending}}:accounts"

    @property
    def applied(self) -> str:
        return f"{self.prefix}:{{trending}}:applied"

    @property
    def recount(self) -> str:
        return f"{self.prefix}:{{trending}}:recount"

    @property
    def recounted(self) -> str:
        return f"{self.prefix}:{{trending}}:recounted"

    def trending_list(self, kind: str, rank: str, provider: str = "") -> str:
        return f"{self.prefix}:{{trending}}:list:{kind}:{rank}{provider and ':' + provider}"

    @property
    def trending_state(self) -> str:
        return f"{self.prefix}:{{trending}}:state"

    @property
    def alerts(self) -> str:
        return f"{self.prefix}:{{alerts}}:states"

    @property
    def alerts_told(self) -> str:
        return f"{self.prefix}:{{alerts}}:told"

    @property
    def alerts_sent(self) -> str:
        return f"{self.prefix}:{{alerts}}:sent"

    @property
    def trending_took(self) -> str:
        return f"{self.prefix}:{{trending}}:took"

    @property
    def published(self) -> str:
        """A channel."""
        return f"{self.prefix}:{{trending}}:published"

    @property
    def providers(self) -> str:
        return f"{self.prefix}:{{trending}}:providers"

    @property
    def contents(self) -> str:
        return f"{self.prefix}:{{trending}}:contents"

    @property
    def contents_version(self) -> str:
        return f"{self.prefix}:{{trending}}:contents:version"

    def series(self, kind: str = "", content: str = "") -> str:
        return f"{self.prefix}:{{trending}}:series:{kind}:{content}"

    @property
    def groups(self) -> str:
        return f"{self.prefix}:{{work}}:groups"

    @property
    def skipped(self) -> str:
        return f"{self.prefix}:{{work}}:skipped"

    @property
    def clock_asked(self) -> str:
        return f"{self.prefix}:{{clock}}:asked"

    @property
    def clock_answered(self) -> str:
        return f"{self.prefix}:{{clock}}:answered"

    def owner(self, job: str, group: int) -> str:
        return f"{self.prefix}:{{work}}:owner:{job}:{group}"

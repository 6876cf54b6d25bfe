-- reply: {code, lease_expires_at, last_seq, duplicate, detail, content}
--   code 0 allow, 1 block, 2 the session to stop is not running, 3 the session is of a profile that the token is not for
--   last_seq -1: none accepted yet
--   detail '' or JSON; of an admission that ended others {ended: [reason]}; of a block {reason, rule, limit, by, retry_at, conflicts: [{session, device, device_type, profile, content,
--   since_at, last_evidence_at, last_evidence}]}
--   content '' or what this account is to be counted as a viewer of; of a block '' or '1' if it is told for the first time; left out
--   where it is neither
local EVIDENCE = {'token', 'licence', 'manifest', 'segment'}

local function describe(r)
  local last = r.signal_at == r.seen and EVIDENCE[r.signal_rank] or 'heartbeat'
  return {session = r.session, device = r.device, device_type = r.device_type ~= '' and r.device_type or nil,
    profile = r.profile, content = r.content, since_at = r.admitted > 0 and r.admitted or r.started, last_evidence_at = r.seen,
    last_evidence = last}
end

-- A view is told of once in every `VIEWERS` ms of its own, so that the sets of distinct viewers need no more (heartbeat.lua
-- does the same on its fast path).
local VIEWERS = 300000
local function appeared(r)
  return not r.was or math.floor((r.seen - r.started) / VIEWERS) > math.floor((r.was - r.started) / VIEWERS)
end

local function allow(r, duplicate, leaving)
  local ended = {}
  for i, go in ipairs(leaving or {}) do ended[i] = go.reason end
  return {0, r.expires, r.seq, duplicate, #ended > 0 and cjson.encode({ended = ended}) or '', appeared(r) and r.content or ''}
end

-- One who was removed while silent, or by its own device's newer session, learns that and by whom.
local function refuse(me, verdict, duplicate)
  if me and verdict.reason == 'limit_reached' and (me.reason == 'displaced' or me.reason == 'superseded') then
    verdict.reason, verdict.by = me.reason, me.by
  end
  local conflicts = {}
  for i, r in ipairs(verdict.conflicts) do conflicts[i] = describe(r) end
  return {1, 0, me and me.status ~= 'b' and me.seq or -1, duplicate, cjson.encode({reason = verdict.reason, rule = verdict.rule,
    limit = verdict.limit, by = verdict.by, retry_at = verdict.retry_at, conflicts = #conflicts > 0 and conflicts or nil}),
    verdict.told and '1' or ''}
end

-- The decision as it stands, without changing anything.
local function decided(ask, me, duplicate)
  if me and me.status == 'r' and alive(me) and me.content == ask.content then return allow(me, duplicate) end
  local verdict = sticky(me) or standing(ask, me) or judge(candidate(ask, me))
  if verdict.allow then return {0, verdict.expires or 0, me and me.seq or -1, duplicate, ''} end
  return refuse(me, verdict, duplicate)
end

-- judge: may this stream have a slot under every rule? Reads only; the verdict says what admitting it would do.
--   ask: session, device, rules, policy, player (false: backend evidence), heir (the record whose slots it
--   takes over, or nil), freed (session -> true: records that end or merge when it is admitted)

local function parse_policy(text)
  local profiles
  text, profiles = string.match(text, '^([^\n]*)\n?(.*)$')
  local mode, require_evidence, rest = string.match(text, '^([^\t]*)\t([^\t]*)(.*)$')
  local policy = {mode = mode, require_evidence = require_evidence == '1', rules = {}, device_unit = true, profiles = profiles}
  for name, unit, limit in string.gmatch(rest, '\t([^:\t]*):(%a):(%d+)') do
    policy.rules[#policy.rules + 1] = {name = name, limit = tonumber(limit)}
    if unit ~= 'd' then policy.device_unit = false end
  end
  return policy
end

-- Whether a token that is for `profiles` ('' any, else each between tabs) reaches the session. What was refused (b) is nobody's, and
-- where only the backend has spoken, without a profile, nobody has said whose it is.
local function reaches(profiles, r)
  return profiles == '' or r.status == 'b' or string.find(profiles, '\t' .. r.profile .. '\t', 1, true) ~= nil
    or (r.profile == '' and r.origin == 's' and profiles ~= '\t')
end

local REMOVED = {evicted = true, displaced = true, takeover = true}

-- A device may not turn on the stream that removed it, nor may a superseded session turn on its own device.
local function guarded(ask, r)
  for _, old in pairs(records) do
    if old.status == 'e' and old.device == ask.device then
      if old.reason == 'superseded' and old.session == ask.session and r.device == ask.device then return true end
      if REMOVED[old.reason] and now < old.ended + tune.guard then
        local remover = records[old.by]
        if r.session == old.by or (remover and remover.device == r.device) then return true end
      end
    end
  end
  return false
end

local function by_time(field, descending)
  return function(a, b)
    if a[field] ~= b[field] then
      if descending then return a[field] > b[field] end
      return a[field] < b[field]
    end
    return a.session < b.session
  end
end

-- Who would leave so that `need` slots of one rule come free: ghosts first, then by the plan's mode.
local function choose(ask, holders, need)
  local weak = unproven(ask, ask.policy.require_evidence)
  local ghosts, others = {}, {}
  for _, r in ipairs(holders) do
    if not weak or unproven(r, ask.policy.require_evidence) then
      r.yields = yields_at(r)
      if r.yields <= now then ghosts[#ghosts + 1] = r else others[#others + 1] = r end
    end
  end
  table.sort(ghosts, by_time('yields'))
  table.sort(others, by_time('admitted', ask.policy.mode == 'stop_latest'))
  local chosen = {}
  for _, r in ipairs(ghosts) do
    if #chosen < need then chosen[#chosen + 1] = {r, 'displaced'} end
  end
  if ask.policy.mode ~= 'deny_new' and ask.player then
    for _, r in ipairs(others) do
      if #chosen < need and not guarded(ask, r) then chosen[#chosen + 1] = {r, 'evicted'} end
    end
  end
  return chosen
end

-- The need-th earliest moment at which one of the holders may go; nil if they never can. An unproven stream waits
-- until a proven one has expired.
local function opens_at(ask, holders, need)
  local weak, times = unproven(ask, ask.policy.require_evidence), {}
  for i, r in ipairs(holders) do
    local takeable = not weak or unproven(r, ask.policy.require_evidence)
    times[i] = takeable and math.max(yields_at(r), now) or r.expires
  end
  table.sort(times)
  return times[need]
end

-- What an account may run whatever its plan says, so that its set stays small: everybody pays for the time a large one takes.
local CEILING = 'account'
local function under_ceiling(gone)
  local running = 0
  for _, r in pairs(records) do
    if r.status == 'r' and not gone[r.session] then running = running + 1 end
  end
  return running < tune.sessions
end

local function judge(ask)
  local gone, leaving, refusal = {}, {}, nil
  for session in pairs(ask.freed) do gone[session] = true end
  if not (ask.heir or under_ceiling(gone)) then
    return {allow = false, reason = 'limit_reached', rule = CEILING, limit = tune.sessions, retry_at = now + tune.interval, conflicts = {}}
  end
  for _, rule in ipairs(ask.policy.rules) do
    if not (ask.heir and holds(ask.heir, rule.name)) then
      local holders = holders_of(rule.name, gone)
      local need = #holders + 1 - rule.limit
      if need > 0 then
        local chosen = ask.victim and {} or choose(ask, holders, need)
        if ask.victim then
          for _, r in ipairs(holders) do
            if r.session == ask.victim then chosen[1] = {r, 'takeover'} end
          end
        end
        if #chosen < need then
          local retry = opens_at(ask, holders, need)
          refusal = refusal or {allow = false, reason = 'limit_reached', rule = rule.name, limit = rule.limit, conflicts = holders}
          refusal.retry_at = retry and math.max(refusal.retry_at or 0, retry) or refusal.retry_at
        end
        for _, pair in ipairs(chosen) do
          gone[pair[1].session] = true
          leaving[#leaving + 1] = {r = pair[1], reason = pair[2], rule = rule.name}
        end
      end
    end
  end
  return refusal or {allow = true, leaving = leaving}
end

-- Told why and by whom for `sticky` ms, whatever is free by then.
local function sticky(me)
  if me and me.status == 'e' and (me.reason == 'evicted' or me.reason == 'takeover') and now < me.ended + tune.sticky then
    return {allow = false, reason = me.reason, rule = me.rule, by = me.by, retry_at = me.ended + tune.sticky,
      conflicts = records[me.by] and {records[me.by]} or {}}
  end
end

-- Superseding is free for who zaps, but not without end: two players behind one device id that name a new session
-- each time would be two streams. A device owes `refill` ms for each, and may owe `burst` of them.
local DEBT = '^[^\n]*\n[^\n]*\n' .. string.rep('[^\t\n]*\t', 15) .. '(%d+)\t(%d+)'
local function debt_of(device)
  local debt = 0
  for _, r in pairs(records) do
    if r.status ~= 'b' and r.device == device then
      local owed, at
      if unread(r) then owed, at = string.match(unread(r), DEBT) else owed, at = r.debt, r.debt_at end
      if owed then debt = math.max(debt, owed - (now - at)) end
    end
  end
  return debt
end

local function affords(debt) return debt + tune.refill <= tune.burst * tune.refill end

-- Nor is it free without end that a second stream shares a slot, on whatever devices: an account may do so for as long as a device may
-- owe, and gets a tenth of the time that passes back. `shared` (ms) is when all of it will be back.
local SHARE_COST = 10
local function may_share() return most_of('shared') - now <= SHARE_COST * tune.burst * tune.refill end
local function share(r, ms)
  local shared = math.max(now, most_of('shared')) + SHARE_COST * math.max(0, ms)
  -- Of what is over only the newest is asked.
  for _, other in ipairs(r.status == 'e' and aged or {}) do
    if other.status == 'e' then
      r = other
      break
    end
  end
  r.shared = shared
  save(r)
end

-- A superseded session still beating shares its device's slot for two intervals, if all rules count devices.
local function standing(ask, me)
  if not (ask.policy.device_unit and me and me.status == 'e' and me.reason == 'superseded') then return nil end
  local heir = records[me.by]
  if heir and heir.status == 'r' and alive(heir) and heir.device == ask.device and now <= me.ended + 2 * tune.interval
      and affords(debt_of(ask.device)) and may_share() then
    return {allow = true, expires = heir.expires, heir = heir}
  end
end

-- Of a device's sessions the one with the same content is superseded first, else the one silent longest.
local function earlier_than(a, b, content)
  if (a.content == content) ~= (b.content == content) then return a.content == content end
  return a.seen < b.seen or (a.seen == b.seen and a.session < b.session)
end

-- Fills in whose place this stream takes when it is admitted: its own, that of the backend's session for the
-- same device and content (adopted), or that of its device's earlier session (superseded).
local function candidate(ask, me)
  local running = me and me.status == 'r'
  ask.freed, ask.proven, ask.paused = {[ask.session] = true}, math.max(ask.proven or 0, running and me.proven or 0), 0
  local earlier
  ask.debt = debt_of(ask.device)
  for _, r in pairs(records) do
    if r.status ~= 'b' and r.device == ask.device and r.session ~= ask.session then
      if ask.player and (r.status == 'r' or r.status == 't') and r.origin == 's' and r.content == ask.content then
        ask.adopted = r
        ask.freed[r.session] = true
        ask.proven = math.max(ask.proven, r.proven)
      elseif r.status == 'r' and not running and (not earlier or earlier_than(r, earlier, ask.content)) then
        earlier = r
      end
    end
  end
  if earlier and not ask.alone and not (me and me.status == 'e' and me.reason == 'superseded') then
    if affords(ask.debt) then
      ask.earlier, ask.debt = earlier, ask.debt + tune.refill
      ask.freed[earlier.session] = true
      ask.proven = math.max(ask.proven, earlier.proven)
    end
  end
  local heir = running and me or (ask.adopted and ask.adopted.status == 'r' and ask.adopted) or ask.earlier
  ask.heir = heir and alive(heir) and heir or nil
  return ask
end

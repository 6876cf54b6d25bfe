-- describe: merges what is said of contents into what is known of them, field by field. Runs on the log Redis.
-- KEYS[1] contents   hash: content -> JSON {kind, title, runtime, provider, hidden}
-- KEYS[2] version    counts the changes
-- KEYS[3] published  channel on which the readers of lists hear of it
-- ARGV[1...] pairs   a content, and JSON of the fields that are said (null: forget it), or '' to forget the content
-- RETURNS how many contents have changed

local merged = {}
for i = 1, #ARGV, 2 do merged[#merged + 1] = {ARGV[i], ARGV[i + 1] ~= '' and cjson.decode(ARGV[i + 1])} end

local changed = 0
for _, pair in ipairs(merged) do
  local content, said = pair[1], pair[2]
  if not said then
    changed = changed + redis.call('HDEL', KEYS[1], content)
  else
    local stored = redis.call('HGET', KEYS[1], content)
    -- What is stored and no object is written anew.
    local legible, known = pcall(cjson.decode, stored or '{}')
    local differs = not stored
    if not legible or type(known) ~= 'table' then known, differs = {}, true end
    for name, value in pairs(said) do
      if value == cjson.null then value = nil end
      if known[name] ~= value then known[name], differs = value, true end
    end
    if differs then
      redis.call('HSET', KEYS[1], content, cjson.encode(known))
      changed = changed + 1
    end
  end
end
if changed > 0 then
  redis.call('INCR', KEYS[2])
  redis.call('PUBLISH', KEYS[3], 'contents')
end
return changed

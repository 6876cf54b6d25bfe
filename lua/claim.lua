-- claim: what a partition's audience has changed by since the last claim that was applied. A claim whose answer was lost, or
-- that nobody applied, is given again.
-- KEYS[1] deltas    hash: kind, content, provider -> change
-- KEYS[2] claimed   hash: the claim under way; field '' is its number
-- KEYS[3] audience  zset: kind, content, provider -> views now
-- ARGV[1] applied   number of the last claim that was applied, 0 for none
-- ARGV[2] whole     1: the audience as well, as it is after this claim
-- RETURNS {number, changes, whole, audience}: flat lists; number = applied if nothing has changed; whole 0 if the audience is
-- further than this claim already

local number, applied = tonumber(redis.call('HGET', KEYS[2], '') or 0) or 0, tonumber(ARGV[1])
if number <= applied then
  redis.call('DEL', KEYS[2])
  number = applied
  if redis.call('EXISTS', KEYS[1]) == 1 then
    number = applied + 1
    redis.call('RENAME', KEYS[1], KEYS[2])
    redis.call('HSET', KEYS[2], '', number)
  end
end
local changes, flat = {}, redis.call('HGETALL', KEYS[2])
for i = 1, #flat, 2 do
  if flat[i] ~= '' then changes[#changes + 1], changes[#changes + 2] = flat[i], flat[i + 1] end
end
if ARGV[2] ~= '1' or redis.call('EXISTS', KEYS[1]) == 1 then return {number, changes, 0, {}} end
return {number, changes, 1, redis.call('ZRANGE', KEYS[3], 0, -1, 'WITHSCORES')}

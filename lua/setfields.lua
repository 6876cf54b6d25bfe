-- setfields: sets one field of each of many hashes; like getfields.
-- KEYS[1] hash       of the first field
-- KEYS[2...] hashes  of the others; a hash may stand here several times
-- ARGV[1] field
-- ARGV[2] value
-- ARGV[3...] more        field and value for each other hash
-- RETURNS how many were set: all but those whose key is no hash

local set = 0
for i, key in ipairs(KEYS) do
  local reply = redis.pcall('HSET', key, ARGV[2 * i - 1], ARGV[2 * i])
  if type(reply) == 'number' then
    set = set + 1
  elseif not string.find(reply.err, 'WRONGTYPE', 1, true) then
    return redis.error_reply(reply.err)
  end
end
return set

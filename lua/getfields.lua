-- getfields: one field of each of many hashes, for a fraction of what as many commands cost a redis-py pipeline. Runs on the
-- log Redis, which is never a cluster.
-- KEYS[1] hash       of the first field
-- KEYS[2...] hashes  of the others; a hash may stand here several times
-- ARGV[1] field
-- ARGV[2...] fields      one for each hash
-- RETURNS the values, false for what is not there, or is in a key that is no hash

local found = {}
for i, key in ipairs(KEYS) do
  local value = redis.pcall('HGET', key, ARGV[i])
  found[i] = type(value) == 'string' and value
end
return found

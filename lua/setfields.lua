-- setfields: sets one field of each of many hashes; like getfields.
-- KEYS[1] hash       of the first field
-- KEYS[2...] hashes  of the others; a hash may stand here several times
-- ARGV[1] field
-- ARGV[2] value
-- ARGV[3...] more        field and value for each other hash
-- RETURNS how many were set

for i, key in ipairs(KEYS) do redis.call('HSET', key, ARGV[2 * i - 1], ARGV[2 * i]) end
return #KEYS

-- running: does the account run such a stream? Reads only, and reads no record whole: it is asked for accounts that ask too much.
-- KEYS[1] leases     zset: session with its record -> when its lease expires (lib/record.lua)
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] account
-- ARGV[3] tuning         see lib/tuning.lua
-- ARGV[4] session        '' any
-- ARGV[5] device         '' any
-- ARGV[6] content
-- RETURNS 1 if one of its running records is of these, else 0

for _, text in ipairs(redis.call('ZRANGE', KEYS[1], '0', '-1')) do
  local session, status, device, content = string.match(text, '^([^\n]*)\n[^\n]*\n(.)[^\n]*\n([^\t]*)\t([^\t]*)')
  if status == 'r' and content == ARGV[6] and (ARGV[4] == '' or session == ARGV[4]) and (ARGV[5] == '' or device == ARGV[5]) then
    return 1
  end
end
return 0

-- viewers: counts an account among those who watch a content. All keys in the content's slot.
-- KEYS[1] fine    HyperLogLog of accounts: these 5 minutes
-- KEYS[2] coarse  the same: this hour
-- ARGV[1] account
-- ARGV[2] fine_ttl    ms
-- ARGV[3] coarse_ttl  ms
-- RETURNS 1
for i = 1, 2 do
  if redis.call('PFADD', KEYS[i], ARGV[1]) == 1 then redis.call('PEXPIRE', KEYS[i], ARGV[i + 1]) end
end
return 1

-- projected: one reading command on the live generation of a projection, found in the same round trip, so that a swap by a
-- replay never lets a request see half of either. Runs on the log Redis, which is never a cluster: the key it reads is
-- known only here.
-- KEYS[1] generations  hash: projection -> its live generation
-- ARGV[1] projection
-- ARGV[2] stem           what the key begins with; the generation follows
-- ARGV[3] rest           what the key ends with, '' or from ':' on
-- ARGV[4] command
-- ARGV[5...] arguments   of the command, behind the key
-- RETURNS the command's reply

local generation = redis.call('HGET', KEYS[1], ARGV[1]) or '1'
return redis.call(ARGV[4], ARGV[2] .. ':' .. generation .. ARGV[3], unpack(ARGV, 5))

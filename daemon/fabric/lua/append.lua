-- Append letters to inboxes, find each run's holder, and ring it or mark the run ready: one script, so that no letter
-- can fall between "is somebody there" and "wake somebody".
-- KEYS: ready, then (inbox, lease) for each run.
-- ARGV: doorbell key prefix, doorbell TTL s, inbox bound, inbox TTL s, then for each run its name, how many letters, and
--   (urgency, letter, term, number) of each.
--   urgency: s = may wait (ACK, CHUNK), h = now (RESULT, CANCEL_ACK), c = look at the command rows; an empty letter only
--   rings; `s` letters are dropped when the inbox is full.
-- Answers how many letters were dropped.
local rank = { s = 1, h = 2, c = 3 }
local bells, dropped = {}, 0
local bound = tonumber(ARGV[3])
local at = 5
for i = 2, #KEYS, 2 do
  local inbox, run, letters = KEYS[i], ARGV[at], tonumber(ARGV[at + 1])
  local length, appended, rung
  at = at + 2
  for _ = 1, letters do
    local urgency, letter = ARGV[at], ARGV[at + 1]
    local kept = true
    if letter ~= '' then
      if urgency == 's' then
        length = length or redis.call('XLEN', inbox)
        kept = length < bound
      end
      if kept then
        redis.call('XADD', inbox, '*', 'e', letter, 't', ARGV[at + 2], 'n', ARGV[at + 3])
        length = length and length + 1
        appended = true
      else
        dropped = dropped + 1
      end
    end
    if kept and rank[urgency] > (rank[rung] or 0) then rung = urgency end
    at = at + 4
  end
  if appended then redis.call('EXPIRE', inbox, ARGV[4]) end
  if rung then
    local holder = redis.call('GET', KEYS[i + 1])
    if holder then
      local node = string.match(holder, '^(.*)/[^/]*$')
      local words = bells[node] or {}
      bells[node] = words
      words[#words + 1] = run .. rung
    else
      redis.call('XADD', KEYS[1], '*', 'r', run)
    end
  end
end
for node, words in pairs(bells) do
  local key = ARGV[1] .. node
  redis.call('XADD', key, 'MAXLEN', '~', 10000, '*', 'b', table.concat(words, ' '))
  redis.call('EXPIRE', key, tonumber(ARGV[2]))
end
return dropped

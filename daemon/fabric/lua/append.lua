-- Append letters to inboxes, find each run's holder, and ring it or mark the run ready: one script, so that no letter
-- can fall between "is somebody there" and "wake somebody".
-- KEYS: ready, then (inbox, lease) for each item.
-- ARGV: doorbell key prefix, doorbell TTL s, inbox bound, inbox TTL s, then (run, urgency, letter, term, number) for each item.
--   urgency: s = may wait (ACK, CHUNK), h = now (RESULT, CANCEL_ACK), c = look at the command rows; an empty letter only
--   rings; `s` letters are dropped when the inbox is full.
-- Answers how many letters were dropped.
local rank = { s = 1, h = 2, c = 3 }
local bells, marked, dropped = {}, {}, 0
local bound = tonumber(ARGV[3])
for i = 0, (#KEYS - 1) / 2 - 1 do
  local inbox, lease = KEYS[2 + 2 * i], KEYS[3 + 2 * i]
  local base = 5 + 5 * i
  local run, urgency, letter = ARGV[base], ARGV[base + 1], ARGV[base + 2]
  local kept = true
  if letter ~= '' then
    if urgency == 's' and redis.call('XLEN', inbox) >= bound then
      dropped = dropped + 1
      kept = false
    else
      redis.call('XADD', inbox, '*', 'e', letter, 't', ARGV[base + 3], 'n', ARGV[base + 4])
      redis.call('EXPIRE', inbox, ARGV[4])
    end
  end
  if kept then
    local holder = redis.call('GET', lease)
    if holder then
      local node = string.match(holder, '^(.*)/[^/]*$')
      local runs = bells[node] or {}
      bells[node] = runs
      if rank[urgency] > (rank[runs[run]] or 0) then runs[run] = urgency end
    elseif not marked[run] then
      marked[run] = true
      redis.call('XADD', KEYS[1], '*', 'r', run)
    end
  end
end
for node, runs in pairs(bells) do
  local words = {}
  for run, urgency in pairs(runs) do words[#words + 1] = run .. urgency end
  local key = ARGV[1] .. node
  redis.call('XADD', key, 'MAXLEN', '~', 10000, '*', 'b', table.concat(words, ' '))
  redis.call('EXPIRE', key, tonumber(ARGV[2]))
end
return dropped

-- wrk -s wrk.lua URL -- METHOD PATH [BODY]
-- In them `{1-9}` becomes a random number from this range, and `{new}` a text that is unique in each request.

local threads = 0

function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
end

function init(args)
  local method, path, body = args[1], args[2], args[3]
  local headers = body and { ["content-type"] = "application/json" }
  local stamp, count = os.time() .. "x" .. number .. "x", 0
  math.randomseed(os.time() + number)
  local function filled(text)
    text = text:gsub("{(%d+)-(%d+)}", function(from, to) return math.random(tonumber(from), tonumber(to)) end)
    return (text:gsub("{new}", function() count = count + 1 return stamp .. count end))
  end
  local function fresh() return wrk.format(method, filled(path), headers, body and filled(body)) end
  request = fresh
  if not (path .. (body or "")):find("{new}") then -- 4096 prepared requests are random enough, and save wrk processor time
    local ready, at = {}, 0
    for i = 1, 4096 do ready[i] = fresh() end
    request = function()
      at = at % #ready + 1
      return ready[at]
    end
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('\n{"seconds":%f,"requests":%d,"failed":%d,"micros":[%d,%d,%d]}\n',
    summary.duration / 1e6, summary.requests,
    errors.connect + errors.read + errors.write + errors.timeout + errors.status,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
